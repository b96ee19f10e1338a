"""`onnxq verify`, and what is asked at the end of every quantization."""

import json
import sys

import numpy as np
import onnx_ir as ir
import pytest
from cli import onnxq, save_data, save_model
from graphs import parse
from qdq_models import INT32_BIAS, NO_Q, SIGNED, conv

import onnxq as api
from onnxq.cli.commands import main
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.pipelines import acceptance
from onnxq.pipelines.verify import verify_file
from onnxq.verify import verdict

RIGHT = (INT32_BIAS,)
WRONG = (NO_Q, {"weights": "v = DequantizeLinear <axis = 1> (w, t, o)"})


def saved(path, *changes):
    ir.save(conv(*changes), path)
    return path


def test_the_exit_code_says_whether_it_failed(tmp_path, capsys):
    assert main(["verify", str(saved(tmp_path / "m.onnx", *RIGHT))]) == 0
    assert "passed" in capsys.readouterr().out
    assert main(["verify", str(saved(tmp_path / "m.onnx", *WRONG))]) == 1
    shown = capsys.readouterr()
    assert "n_y: its weights have their scales along axis 1" in shown.out
    assert "Quantize along the output channels" in shown.out
    assert "does not suit onnxruntime: legality, onnxruntime failed" in shown.err


def test_a_process_of_its_own_ends_alike(tmp_path):
    done = onnxq("verify", saved(tmp_path / "m.onnx", *WRONG))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_verdicts_for_machines(tmp_path, capsys):
    assert main(["verify", str(saved(tmp_path / "m.onnx", *WRONG)), "--json"]) == 1
    legality, runtime = json.loads(capsys.readouterr().out)
    assert (legality["runtime"], legality["status"], runtime["runtime"]) == (
        "legality",
        "failed",
        "onnxruntime",
    )
    assert {"node", "severity", "message", "advice"} == set(legality["findings"][0])
    assert legality["counts"] == {"layers": 1, "weighted": 1}


def test_like_findings_share_a_line(tmp_path, capsys):
    text = """g (float[N,16] x) => (float[N,16] y) <int8[16,16] w, float t, int8 o> {
        v = DequantizeLinear (w, t, o) a = MatMul (x, v) b = MatMul (a, v) y = MatMul (b, v)
    }"""
    ir.save(parse(text, w=3, t=0.1, o=0), tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), "--target", "tensorrt"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "its weights are quantized" in line]
    assert len(lines) == 1
    assert lines[0].count("MatMul_") == 3  # nodes without names get some


def test_a_float_model_has_not_passed(tmp_path):
    verdicts = verify_file(save_model(tmp_path / "m.onnx"), QuantConfig(target="tensorrt"))
    assert {verdict.status for verdict in verdicts} == {"not checked"}
    assert all("nothing is quantized" in verdict.summary for verdict in verdicts)


def test_a_target_without_a_runtime_here_is_not_checked(tmp_path):
    _, runtime = verify_file(saved(tmp_path / "m.onnx"), QuantConfig(target="qnn"))
    assert (runtime.runtime, runtime.status) == ("qnn", "not checked")
    assert "only its rules were checked" in runtime.summary


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_a_missing_runtime_is_not_checked(tmp_path, monkeypatch, target):
    monkeypatch.setattr(sys.modules[f"onnxq.verify.{target}"], "installed", lambda *modules: None)
    path = saved(tmp_path / "m.onnx", SIGNED, NO_Q)
    assert [v.status for v in verify_file(path, QuantConfig(target=target))] == ["passed", "not checked"]


def test_it_runs_on_the_data_given(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((3, 16, 8, 8), np.float32))
    path = saved(tmp_path / "m.onnx", *RIGHT)
    verdicts = verify_file(path, QuantConfig(data=tmp_path / "d.npz"))
    assert "(3 samples)" in verdicts[1].summary


def test_usage(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none.onnx")]) == 1
    assert main(["verify", str(saved(tmp_path / "m.onnx")), "--target", "abacus"]) == 2
    assert main(["verify", str(tmp_path / "m.onnx"), "--method", "mse"]) == 2
    capsys.readouterr()


# --- At the end of a quantization -------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    return tmp_path


def quantize(folder, **options):
    config = QuantConfig(correct=("none",), **options)
    return api.quantize_static(folder / "m.onnx", folder / "o.onnx", folder / "d.npz", config)


def test_every_quantization_is_verified(folder):
    legality, runtime = quantize(folder).verdicts
    assert (legality.runtime, legality.status) == ("legality", "passed")
    assert (runtime.runtime, runtime.status) == ("onnxruntime", "passed")
    assert runtime.counts["integer layers"] == runtime.counts["layers"] == 2


def test_the_closing_table_tells(folder, capsys):
    arguments = ["quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--correct", "none"]
    assert main([str(folder / a) if "." in a else a for a in arguments]) == 0
    shown = capsys.readouterr().out
    assert "legality: passed" in shown
    assert "onnxruntime: passed, 2 of 2 quantized operators" in shown


def test_off_asks_no_runtime(folder, monkeypatch):
    monkeypatch.setattr(acceptance, "ask_runtimes", lambda subject: pytest.fail("asked"))
    assert [verdict.runtime for verdict in quantize(folder, verify="off").verdicts] == ["legality"]


def test_a_model_that_breaks_rules_is_not_written(folder, monkeypatch):
    broken = verdict.make_verdict("legality", "", [verdict.Finding("c", "error", "its scale holds nan.")])
    monkeypatch.setattr(acceptance, "check", lambda subject: broken)
    with pytest.raises(ModelError, match=r"a bug in onnxq.*c: its scale holds nan"):
        quantize(folder)
    assert not (folder / "o.onnx").exists()


def test_what_runs_in_float_is_a_warning(folder, monkeypatch):
    planned = next(iter(quantize(folder, verify="off").plan.integer_nodes))
    finding = verdict.Finding(planned, "error", "runs in float")
    monkeypatch.setattr(
        acceptance, "ask_runtimes", lambda subject: [verdict.make_verdict("onnxruntime", "", [finding])]
    )
    assert any("run in float" in warning and planned in warning for warning in quantize(folder).warnings)
    assert (folder / "o.onnx").exists()
