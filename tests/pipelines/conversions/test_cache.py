"""`onnxq cache`: keys and values go in and come out as int8, and nothing else changes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

import onnxq
from calibrators.data.caches import find_caches
from calibrators.session import open_session
from onnxq.cli import commands
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.graph.files import load

DECODER = """g (float[N,S,64] x, float[N,P,64] keys, float[N,P,64] values)
    => (float[N,S,64] y, float[N,T,64] all_keys, float[N,T,64] all_values)
    <float[64,64] q, float[64,64] k, float[64,64] v>
    { a = MatMul(x, q)  b = MatMul(x, k)  c = MatMul(x, v)
      all_keys = Concat<axis=1>(keys, b)  all_values = Concat<axis=1>(values, c)
      d = Transpose<perm=[0,2,1]>(all_keys)  e = MatMul(a, d)  f = Softmax(e)  y = MatMul(f, all_values) }"""
CACHES = ("keys", "values")


def saved(folder: Path, text: str = DECODER, opset: int = 17) -> Path:
    """Store a decoder, some of whose keys are much larger than the others."""
    model = parse(text, opset=opset)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy() / 8
        array = array * np.where(np.arange(64) % 9 == 0, 30, 1) if name == "k" else array
        array = array / 30 if name == "q" else array
        value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=name)
    ir.save(model, folder / "decoder.onnx")
    return folder / "decoder.onnx"


def samples(dtype: type = np.float32, count: int = 10) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    empty = np.zeros((1, 0, 64), dtype)
    return [
        {"x": rng.standard_normal((1, 7, 64)).astype(dtype), "keys": empty, "values": empty}
        for _ in range(count)
    ]


def decode(path: Path, x: np.ndarray) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Run position by position; return the outputs, and the caches after each step."""
    session = open_session(path, exact=False)
    types = {each.name: np.int8 if "int8" in each.type else x.dtype for each in session.get_inputs()}
    caches, steps, outputs = [np.zeros((1, 0, 64), types[name]) for name in CACHES], [], []
    for position in range(x.shape[1]):
        y, *caches = session.run(
            None, {"x": x[:, position : position + 1], **dict(zip(CACHES, caches, strict=True))}
        )
        outputs.append(y)
        steps.append(caches)
    return np.concatenate(outputs, axis=1), steps


def ratio(exact: np.ndarray, found: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return float(np.square(found - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("mode", ["float", "weight-only", "static"])
def test_integers_go_in_and_come_out_unchanged(mode: str, tmp_path: Path) -> None:
    given, output = saved(tmp_path), tmp_path / "int8.onnx"
    if mode != "float":
        quantize = onnxq.quantize_weights if mode == "weight-only" else onnxq.quantize_static
        quantize(given, tmp_path / "q.onnx", data=samples(), config=QuantConfig(verify="off"))
        given = tmp_path / "q.onnx"
    result = onnxq.quantize_cache(given, output, samples())
    x = samples()[-1]["x"]
    exact, _ = decode(given, x)
    found, steps = decode(output, x)
    assert all(cache.dtype == np.int8 for cache in steps[-1])
    for before, after in itertools.pairwise(steps):
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new[:, :-1], old)
    assert ratio(exact, found) < 1e-3
    assert result.quality.outputs["y"].sqnr > 25
    assert result.position_bytes == (2 * 64 * 4, 2 * 64)
    assert result.warnings == ()


def test_the_axis_with_the_least_error_has_the_scales(tmp_path: Path) -> None:
    result = onnxq.quantize_cache(saved(tmp_path), tmp_path / "int8.onnx", samples())
    assert result.axes == {"all_keys": 2, "all_values": 2}
    model = load(tmp_path / "int8.onnx")
    scale = model.graph.initializers["keys_scale"].const_value
    assert scale is not None
    array = scale.numpy()
    assert array.shape == (64,)
    assert array[::9].min() > 3 * np.delete(array, np.s_[::9]).max()


def test_half_precision_and_old_opsets(tmp_path: Path) -> None:
    path = saved(tmp_path, DECODER.replace("float[", "float16["), opset=13)
    onnxq.quantize_cache(path, tmp_path / "int8.onnx", samples(np.float16))
    model = load(tmp_path / "int8.onnx")
    assert [value.dtype.name for value in model.graph.inputs] == ["FLOAT16", "INT8", "INT8"]
    assert [value.dtype.name for value in model.graph.outputs] == ["FLOAT16", "INT8", "INT8"]
    x = samples(np.float16)[-1]["x"]
    assert ratio(decode(path, x)[0], decode(tmp_path / "int8.onnx", x)[0]) < 1e-3


def test_the_given_names_stay(tmp_path: Path) -> None:
    path = saved(tmp_path)
    onnxq.quantize_cache(path, tmp_path / "int8.onnx", samples())
    before, after = load(path).graph, load(tmp_path / "int8.onnx").graph
    assert [value.name for value in after.inputs] == [value.name for value in before.inputs]
    assert [value.name for value in after.outputs] == [value.name for value in before.outputs]
    assert find_caches(after) == []


def test_without_data_there_is_a_warning(tmp_path: Path) -> None:
    result = onnxq.quantize_cache(saved(tmp_path), tmp_path / "int8.onnx")
    assert "NO DATA" in result.warnings[0]


@pytest.mark.parametrize("twice", [True, False])
def test_a_model_without_float_caches_is_refused(twice: bool, tmp_path: Path) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }"
    path = saved(tmp_path, DECODER if twice else text)
    if twice:
        onnxq.quantize_cache(path, tmp_path / "int8.onnx", samples())
        path = tmp_path / "int8.onnx"
    with pytest.raises(ModelError, match="no float cache of keys and values"):
        onnxq.quantize_cache(path, tmp_path / "again.onnx", samples())
    assert not (tmp_path / "again.onnx").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rows = saved(tmp_path), samples()
    np.savez(tmp_path / "d.npz", **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    command = ["cache", str(path), str(tmp_path / "int8.onnx"), "--data", str(tmp_path / "d.npz")]
    assert commands.main(command) == 0
    printed = capsys.readouterr().out
    assert "2 in int8, a scale for each channel of axis 2" in printed
    assert "512 -> 128 bytes in all caches" in printed
    assert commands.main([*command, "--json"]) == 0
    assert '"position_bytes"' in capsys.readouterr().out
