"""`onnxq.quantize_static` takes a model in any form."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import save_model

import onnxq

DATA = [np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32) for _ in range(10)]
CONFIG = onnxq.QuantConfig(verify="off")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("load", [onnx.load, ir.load], ids=["onnx", "onnx_ir"])
def test_models_in_memory(folder, load):
    onnxq.quantize_static("m.onnx", "file.onnx", DATA, CONFIG)
    result = onnxq.quantize_static(load("m.onnx"), "memory.onnx", DATA, CONFIG)
    assert Path("file.onnx").read_bytes() == Path("memory.onnx").read_bytes()
    assert result.table.activations  # read from a file that is gone by now
    assert not Path(result.request.model).exists()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            3,
            {},
            "a model of type int: expected the path of an ONNX file, an ONNX model, or a torch.nn.Module",
        ),
        ("m.onnx", {"example_inputs": (1,)}, "example_inputs go with a torch.nn.Module"),
    ],
)
def test_what_is_no_model(folder, model, options, message):
    with pytest.raises(onnxq.ConfigError, match=message):
        onnxq.quantize_static(model, "o.onnx", DATA, **options)
