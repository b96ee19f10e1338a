"""Sessions: extra outputs, models beside their weights, and errors that say what is wrong."""

from __future__ import annotations

import tempfile

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import parse

from calibrators import session as module
from calibrators.collect import run_batch
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import brief, open_session

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,3] x) => (float[N,3] y)
<float[3] w = {1, 2, 3}>
{
    h = Mul(x, w)
    y = Relu(h)
}
"""
X = np.array([[1, -1, 2]], np.float32)


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def names(session: ort.InferenceSession) -> list[str]:
    return [output.name for output in session.get_outputs()]


def test_intermediate_tensors_come_after_the_outputs_and_once(model):
    session = open_session(model, outputs=["h", "y", "x", "h", "w"])
    assert names(session) == ["y", "h", "x", "w"]
    y, h, x, w = session.run(None, {"x": X})
    np.testing.assert_array_equal(h, [[1, -2, 6]])
    np.testing.assert_array_equal(y, [[1, 0, 6]])
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(w, [1, 2, 3])


def test_the_callers_model_stays_as_it_is(model):
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    open_session(model, outputs=["h"])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_file_is_read_once_and_then_left_to_the_runtime(model, tmp_path, monkeypatch, saturates, optimize):
    path, read, opened = tmp_path / "m.onnx", [], []
    ir.save(model, path)
    read_model, create = module.read_model, module._create
    monkeypatch.setattr(module, "saturates", lambda: saturates)
    monkeypatch.setattr(module, "read_model", lambda file: read.append(file) or read_model(file))
    monkeypatch.setattr(module, "_create", lambda source, *a: opened.append(source) or create(source, *a))
    open_session(path, optimize=optimize)
    assert (read, opened) == ([path], [str(path)])


@pytest.mark.parametrize("outputs", [(), ("h",)])
def test_a_path_will_do(model, tmp_path, outputs):
    ir.save(model, tmp_path / "m.onnx")
    assert names(open_session(tmp_path / "m.onnx", outputs=outputs)) == ["y", *outputs]
    assert names(open_session(str(tmp_path / "m.onnx"), outputs=outputs)) == ["y", *outputs]


@pytest.mark.parametrize("outputs", [(), ("h",)])
def test_weights_in_a_file_of_their_own(model, tmp_path, outputs, monkeypatch):
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for source in (tmp_path / "m.onnx", ir.load(tmp_path / "m.onnx")):
        session = open_session(source, outputs=outputs)
        np.testing.assert_array_equal(session.run(["y"], {"x": X})[0], [[1, 0, 6]])
    assert list(scratch.iterdir()) == []


def test_large_models_go_through_a_file_that_does_not_stay(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INLINE_LIMIT", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = open_session(model, outputs=["h"])
    np.testing.assert_array_equal(session.run(["h"], {"x": X})[0], [[1, -2, 6]])
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_temporary_file(model, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "INLINE_LIMIT", 0)
    monkeypatch.setattr(module, "save_model", full)
    with pytest.raises(CalibrationError, match=r"temporary copy of the model.*No space left"):
        open_session(model)


def test_a_tensor_that_is_not_there(model):
    with pytest.raises(CalibrationError, match="no tensor called nope, nada in the graph g"):
        open_session(model, outputs=["nope", "h", "nada"])


def test_a_tensor_inside_a_branch():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (bool c, float[N] x) => (float[N] y)
    {
        y = If (c) <
            then_branch = a () => (float[N] t) { t0 = Relu(x)  t = Abs(t0) },
            else_branch = b () => (float[N] e) { e = Neg(x) }
        >
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(CalibrationError, match="t0 lies inside a branch"):
        open_session(model, outputs=["t0"])


def test_an_unknown_provider_is_told_which_there_are(model):
    with pytest.raises(CalibrationError, match=r"NoSuchProvider is not .*CPUExecutionProvider"):
        open_session(model, providers=["CPUExecutionProvider", "NoSuchProvider"])
    with pytest.raises(CalibrationError, match=r"\(none\)"):
        open_session(model, providers=[])


@pytest.mark.parametrize("outputs", [(), ("h",)])
@pytest.mark.parametrize("content", [None, b"not a model"])
def test_files_that_are_no_models_are_named(tmp_path, content, outputs, capfd):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"m\.onnx") as error:
        open_session(path, outputs=outputs)
    assert "[ONNXRuntimeError]" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_model_that_the_runtime_refuses(capfd):
    model = ir.from_proto(onnx.parser.parse_model(TEXT.replace("Relu", "NoSuchOp")))
    with pytest.raises(CalibrationError, match=r"cannot load the model: .*NoSuchOp"):
        open_session(model)
    assert capfd.readouterr().err == ""


def test_options_reach_the_session(model):
    options = open_session(model, threads=1, optimize=False, alone=False).get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert not options.enable_mem_pattern
    assert open_session(model).get_session_options().intra_op_num_threads == 0


def test_brief():
    assert brief(ValueError("[ONNXRuntimeError] : 1 : FAIL : a : b\n  c")) == "a : b c"
    assert brief(ValueError("plain")) == "plain"
    assert len(brief(ValueError("x" * 5000))) == module.MESSAGE_LIMIT


SHARED = """g (uint8[N,8] x) => (float[N,8] y, float[N,8] z) <float s, uint8 zero, float[8] ws, int8[8,8] w>
{ a = DequantizeLinear(x, s, zero)  d = DequantizeLinear<axis=1>(w, ws)  e = DequantizeLinear<axis=1>(w, ws)
  y = MatMul(a, d)  b = DequantizeLinear(x, s, zero)  z = MatMul(b, e) }"""


def test_sums_of_products_are_exact_on_every_processor():
    """255 * 127 * 2 does not fit in the 16 bits in which kernels without VNNI add; weights are shared."""
    given = {"s": 1.0, "zero": 0, "ws": np.ones(8), "w": np.full((8, 8), 127)}
    found = open_session(parse(SHARED, **given)).run(None, {"x": np.full((2, 8), 255, np.uint8)})
    assert all(np.array_equal(array, np.full((2, 8), 8 * 255 * 127)) for array in found)


def test_they_are_exact_too_where_weights_are_shared_before_they_are_quantized():
    """Weights in float with a QuantizeLinear after them: the runtime makes them one int8 constant."""
    text = SHARED.replace("int8[8,8] w>", "int8[8] z8, float[8,8] w0>").replace(
        "{ a =", "{ w = QuantizeLinear<axis=1>(w0, ws, z8) a ="
    )
    given = {"s": 1.0, "zero": 0, "ws": np.ones(8), "z8": 0, "w0": np.full((8, 8), 127)}
    found = open_session(parse(text, **given)).run(None, {"x": np.full((2, 8), 255, np.uint8)})
    assert all(np.array_equal(array, np.full((2, 8), 8 * 255 * 127)) for array in found)


OPSET_21 = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[2,8,4] x) => (float[2,8,4] y)
<float s = {0.1}, int8 z = {0}, float t = {0.02}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear(w, t, z)
    m = MatMul(d, v)
    y = Add(m, b)
}
"""


def test_fusions_that_make_a_model_that_does_not_load_are_left_out(tmp_path, caplog):
    model = onnx.parser.parse_model(OPSET_21)
    draw = np.random.default_rng(1)
    for name, array in {
        "w": draw.integers(-9, 9, (4, 4)).astype(np.int8),
        "b": draw.normal(size=4).astype(np.float32),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    feeds = {"x": draw.normal(size=(2, 8, 4)).astype(np.float32)}
    onnx.save(model, tmp_path / "m.onnx")
    plain = open_session(tmp_path / "m.onnx", optimize=False).run(None, feeds)[0]
    np.testing.assert_allclose(open_session(tmp_path / "m.onnx").run(None, feeds)[0], plain, atol=1e-5)
    assert "without fusions it does" in caplog.text
    with pytest.raises(CalibrationError, match="output_dtype"):
        open_session(tmp_path / "m.onnx", exact=False)


NO_ZERO_POINTS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,3] y)
<float[3] s = {0.1, 0.2, 0.3}, int8[4,3] w = {1, -2, 3, 4, -5, 6, 7, -8, 9, 1, -1, 1}>
{
    v = DequantizeLinear<axis = -1>(w, s)
    y = MatMul(x, v)
}
"""


def test_weights_without_zero_points_run_in_exact_kernels(monkeypatch):
    monkeypatch.setattr(module, "saturates", lambda: True)
    model = ir.from_proto(onnx.parser.parse_model(NO_ZERO_POINTS))
    feeds = {"x": np.eye(4, dtype=np.float32)}
    plain = open_session(model, optimize=False).run(None, feeds)[0]
    np.testing.assert_allclose(open_session(model).run(None, feeds)[0], plain, rtol=1e-6)
    assert len(model.graph[0].inputs) == 2


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_no_other_provider_takes_the_place_of_one_that_does_not_start(model, monkeypatch, caplog):
    offered = ["CUDAExecutionProvider", *ort.get_available_providers()]
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: offered)
    with pytest.raises(CalibrationError, match="does not start"):
        open_session(model, providers=["CUDAExecutionProvider"])
    assert not caplog.records


@pytest.mark.parametrize("exact", [True, False])
def test_last_inputs_without_a_name_do_not_end_the_process(tmp_path, exact):
    """ONNX Runtime fuses the two nodes, and reads the bias that is not there."""
    graph = """g (float[N,3,8] x) => (float[N,3,8] y) <float[8] gamma>
    { r = Add(x, x) y = LayerNormalization(r, gamma) }"""
    proto = ir.to_proto(parse(graph, opset=17))
    proto.graph.node[1].input.append("")
    onnx.save(proto, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx", exact=exact)
    assert session.run(None, {"x": np.ones((1, 3, 8), np.float32)})[0].shape == (1, 3, 8)


def test_a_recurrent_model_gets_no_empty_input():
    model = parse(
        "g (float[T,N,4] x) => (float[T,1,N,6] y) <float[1,18,4] w, float[1,18,6] r> { y = GRU<hidden_size=6>(x, w, r) }"
    )
    session = open_session(model)
    with pytest.raises(CalibrationError, match="the model cannot run empty: input 'x' is empty"):
        run_batch(session, ["y"], Sample("empty", {"x": np.zeros((5, 0, 4), np.float32)}))
    (y,) = run_batch(session, ["y"], Sample("one", {"x": np.zeros((5, 1, 4), np.float32)}))
    assert y.shape == (5, 1, 1, 6)
