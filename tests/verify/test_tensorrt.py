"""What TensorRT itself says, and that legality agrees with it. Skipped where it is not installed."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from graphs import parse
from qdq_models import NO_Q, SIGNED, WRONG_FOR_TENSORRT, conv, messages, named, subject

from calibrators.session import open_session
from onnxq.verify import legality, process, tensorrt

HERE = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None and importlib.util.find_spec("tensorrt") is None,
    reason="TensorRT is not installed: pip install 'onnxq[tensorrt]'",
)

ATTENTION = """g (float[1,4,32,16] a, float[1,4,16,32] b, float[1,4,32,16] c) => (float[1,4,32,16] y)
<float s, int8 z> {
    qa = QuantizeLinear (a, s, z) da = DequantizeLinear (qa, s, z)
    qb = QuantizeLinear (b, s, z) db = DequantizeLinear (qb, s, z)
    qc = QuantizeLinear (c, s, z) dc = DequantizeLinear (qc, s, z)
    m = MatMul (da, db) p = Softmax (m) qp = QuantizeLinear (p, s, z) dp = DequantizeLinear (qp, s, z)
    y = MatMul (dp, dc)
}"""


@HERE
def test_a_right_model_is_built_in_int8(tmp_path):
    found = tensorrt.check(subject(conv(SIGNED, NO_Q), "tensorrt", tmp_path / "m.onnx"))
    assert found.status == "passed"
    assert found.counts["integer layers"] == found.counts["weighted"] == 1
    assert found.counts["engine layers"] >= 2
    assert "1 of 1 operators with weights run in int8" in found.summary
    assert "SQNR" in found.summary or "not run: there is no GPU" in found.summary


@HERE
@pytest.mark.parametrize(("changes", "_", "expected"), WRONG_FOR_TENSORRT.values(), ids=WRONG_FOR_TENSORRT)
def test_legality_agrees_with_tensorrt(tmp_path, changes, _, expected):
    """What legality refuses, TensorRT refuses, runs in float, or reads as something else."""
    one = subject(conv(SIGNED, NO_Q, *changes), "tensorrt", tmp_path / "m.onnx")
    assert legality.check(one).status == "failed"
    found = tensorrt.check(one)
    if expected:
        assert found.status == "failed"
        assert expected in messages(found)
    else:
        assert found.status == "passed"
        assert found.counts["integer layers"] == (0 if expected is None else 1)


@HERE
@pytest.mark.parametrize(
    ("op", "shape", "axis"),
    [("Gemm", "16,8", 1), ("Gemm <transB = 1>", "8,16", 0), ("MatMul", "16,8", 1)],
)
@pytest.mark.parametrize("right", [True, False])
def test_the_axis_of_matrices(tmp_path, op, shape, axis, right):
    axis = axis if right else 1 - axis
    size = [int(n) for n in shape.split(",")][axis]
    text = f"""g (float[N,16] x) => (float[N,8] y)
    <float s, int8 z, int8[{shape}] w, float[{size}] t, int8[{size}] o> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
        v = DequantizeLinear <axis = {axis}> (w, t, o) y = {op} (d, v)
    }}"""
    values = {"s": 0.1, "z": 0, "t": np.linspace(0.1, 0.2, size), "o": 0}
    one = subject(named(parse(text, **values, w=3)), "tensorrt", tmp_path / "m.onnx", samples=1)
    verdicts = legality.check(one), tensorrt.check(one)
    assert [v.status for v in verdicts] == ["passed" if right else "failed"] * 2
    if not right:
        assert "runs in float on tensorrt: the scales of its weights" in messages(verdicts[1])


@HERE
def test_products_of_activations_run_in_int8(tmp_path):
    model = named(parse(ATTENTION, s=0.02, z=0))
    found = tensorrt.check(subject(model, "tensorrt", tmp_path / "m.onnx"))
    assert (found.status, found.counts["integer layers"]) == ("passed", 2)


@HERE
def test_a_transposed_convolution_runs_in_float_and_is_told(tmp_path):
    text = """g (float[1,16,8,8] x) => (float[1,8,16,16] y) <float s, int8 z, int8[16,8,2,2] w, float t, int8 o> {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
        y = ConvTranspose <strides = [2, 2]> (d, v)
    }"""
    model = named(parse(text, s=0.1, z=0, w=3, t=0.1, o=0))
    found = tensorrt.check(subject(model, "tensorrt", tmp_path / "m.onnx"))
    (told,) = found.findings
    assert (told.node, told.severity, found.status) == ("n_y", "warning", "passed")
    assert "TensorRT-RTX has no int8 kernel" in told.message


@HERE
@pytest.mark.parametrize("side", [5, 7])
def test_fp8_has_kernels_for_small_windows(tmp_path, side):
    """On both GPU types that the target names; legality says the same without an engine."""
    text = f"""g (float[1,32,9,9] x) => (float[1,32,9,9] y)
    <float s, float8e4m3fn z, float8e4m3fn[32,32,{side},{side}] w, float[32] t, float8e4m3fn[32] o> {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear <axis = 0> (w, t, o)
        y = Conv <kernel_shape = [{side}, {side}], pads = [{", ".join([str(side // 2)] * 4)}]> (d, v)
    }}"""
    model = named(parse(text, opset=19, s=0.1, z=0, t=0.1, o=0))
    one = subject(model, "tensorrt-fp8", tmp_path / "m.onnx")
    verdicts = legality.check(one), tensorrt.check(one)
    assert [v.status for v in verdicts] == ["passed" if side == 5 else "failed"] * 2
    assert "for SM89 and SM120" in verdicts[1].summary
    assert f"{int(side == 5)} of 1 operators with weights run in FP8" in verdicts[1].summary
    if side == 7:
        assert "49 elements" in messages(verdicts[0])
        assert "windows of at most 32 elements" in messages(verdicts[1])


@HERE
def test_a_gpu_type_without_fp8_is_refused_by_name(monkeypatch, tmp_path):
    text = """g (float[8,32] x) => (float[8,32] y) <float s, float8e4m3fn z, float8e4m3fn[32,32] w, float t, float8e4m3fn o> {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
        y = MatMul (d, v)
    }"""
    one = subject(named(parse(text, opset=19, s=0.1, z=0, t=0.1, o=0)), "tensorrt-fp8", tmp_path / "m.onnx")
    older = replace(one, target=replace(one.target, capabilities=("SM86",)))
    found = tensorrt.check(older)
    assert found.status == "failed"
    assert "refuses the model for SM86" in found.summary


def test_without_tensorrt_nothing_has_passed(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt, "MODULES", ("no_such_runtime",))
    found = tensorrt.check(subject(conv(SIGNED, NO_Q), "tensorrt", tmp_path / "m.onnx"))
    assert found.status == "not checked"
    assert "pip install" in found.summary


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (
            process.Answer(failure="it crashed (SIGSEGV)"),
            "failed",
            "no engine was built: it crashed (SIGSEGV)",
        ),
        (
            process.Answer(failure="it did not end within 60 s", timed_out=True),
            "not checked",
            "it did not end within 60 s",
        ),
        (
            process.Answer({"version": "1", "capability": "SM86", "built": False, "errors": []}),
            "failed",
            "gives no reason",
        ),
    ],
)
def test_a_build_that_fails_is_no_error_of_ours(monkeypatch, tmp_path, answer, status, words):
    monkeypatch.setattr(tensorrt, "installed", lambda *modules: "tensorrt")
    monkeypatch.setattr(tensorrt, "run_in_process", lambda *arguments: answer)
    found = tensorrt.check(subject(conv(SIGNED, NO_Q), "tensorrt", tmp_path / "m.onnx"))
    assert found.status == status
    assert words in found.summary + messages(found)


@pytest.mark.parametrize(("error", "status"), [(0.001, "passed"), (0.5, "failed")])
def test_what_a_gpu_computes_is_compared(monkeypatch, tmp_path, error, status):
    """The worker's part is played: no GPU is needed."""
    one = subject(conv(SIGNED, NO_Q), "tensorrt", tmp_path / "m.onnx", samples=1)
    layer = {"type": "correlation", "kernel": "", "reads": ["Int8"], "nodes": ["n_y"]}

    def played(_worker, arguments, _seconds):
        path, feeds, outputs, _capability = arguments
        session = open_session(path, optimize=False)
        y = session.run(["y"], dict(np.load(feeds)))[0]
        np.savez(outputs, y=y * (1 + error))
        content = {"version": "1", "capability": "", "built": True, "layers": [layer]}
        return process.Answer({**content, "ran": True, "why_not": ""})

    monkeypatch.setattr(tensorrt, "installed", lambda *modules: "tensorrt")
    monkeypatch.setattr(tensorrt, "run_in_process", played)
    found = tensorrt.check(one)
    assert found.status == status
    assert "dB between the GPU and ONNX Runtime" in found.summary
