"""The public functions take a model in any form."""

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


def test_a_model_in_memory_with_sparse_weights(folder):
    model = onnx.load("m.onnx")
    plain = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = onnx.numpy_helper.to_array(plain)
    at = np.flatnonzero(weights)
    values, indices = weights.reshape(-1)[at], onnx.numpy_helper.from_array(at, "at")
    tensor = onnx.numpy_helper.from_array(values, plain.name)
    sparse = onnx.helper.make_sparse_tensor(tensor, indices, list(weights.shape))
    onnxq.quantize_static(model, "plain.onnx", DATA, CONFIG)
    model.graph.initializer.remove(plain)
    model.graph.sparse_initializer.append(sparse)
    onnxq.quantize_static(model, "sparse.onnx", DATA, CONFIG)
    assert Path("sparse.onnx").stat().st_size == Path("plain.onnx").stat().st_size
    assert len(model.graph.sparse_initializer) == 1, "the given model stays"
    sparse.dims[0] = 2**40
    model.graph.sparse_initializer[0].CopyFrom(sparse)
    with pytest.raises(onnxq.ModelError, match="the given ModelProto: its sparse tensors have"):
        onnxq.quantize_static(model, "bomb.onnx", DATA, CONFIG)


DYNAMIC = """g (float[N,16] x) => (float[N,64] y) <float[16,64] w> { y = MatMul(x, w) }"""


@pytest.mark.parametrize("load", [onnx.load, ir.load], ids=["onnx", "onnx_ir"])
def test_every_function_takes_models_in_memory(folder, load):
    model, small = load("m.onnx"), load(save_model(folder / "d.onnx", DYNAMIC))
    onnxq.quantize_dynamic("d.onnx", "file.onnx")
    assert onnxq.quantize_dynamic(small, "memory.onnx").quality is not None
    assert Path("file.onnx").read_bytes() == Path("memory.onnx").read_bytes()
    assert onnxq.calibrate(model, DATA)["x"].high == onnxq.calibrate("m.onnx", DATA)["x"].high
    calibration = onnxq.Calibration(model, CONFIG)
    for x in DATA:
        calibration.observe(x)
    result = calibration.convert("loop.onnx")
    del calibration
    assert result.table.activations
    assert not Path(result.request.model).exists()
    again = onnxq.requantize(load("loop.onnx"), "again.onnx", DATA, CONFIG)
    assert again.table.activations
    assert onnxq.requantize("loop.onnx", "file.onnx", DATA, CONFIG).kept == again.kept


@pytest.mark.parametrize("name", ["quantize_static", "quantize_dynamic", "requantize"])
@pytest.mark.parametrize("model", [3, b"model", None, onnx.ModelProto, ["m.onnx"]], ids=str)
def test_no_function_takes_what_is_no_model(folder, name, model):
    with pytest.raises(onnxq.ConfigError, match="expected the path of an ONNX file, an ONNX model"):
        getattr(onnxq, name)(model, "o.onnx")
    with pytest.raises(onnxq.ConfigError, match="expected the path of an ONNX file, an ONNX model"):
        onnxq.calibrate(model, DATA)
    with pytest.raises(onnxq.ConfigError, match="expected the path of an ONNX file, an ONNX model"):
        onnxq.Calibration(model)
    assert not Path("o.onnx").exists()


def test_example_inputs_go_with_modules(folder):
    for name in ("quantize_static", "quantize_dynamic"):
        with pytest.raises(onnxq.ConfigError, match="example_inputs go with a torch"):
            getattr(onnxq, name)(onnx.load("m.onnx"), "o.onnx", example_inputs=(1,))


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
