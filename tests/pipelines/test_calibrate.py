"""`onnxq.Calibration`: samples are pushed in; the result is that of quantize_static on the same samples."""

from pathlib import Path

import numpy as np
import pytest
from cli import save_model

import onnxq
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError, ModelError
from onnxq.pipelines.calibrate import Calibration

CONFIG = QuantConfig(verify="off", threads=1)
DATA = np.random.default_rng(0).standard_normal((30, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "wrap", [lambda x: {"x": x}, lambda x: x, lambda x: (x, 3)], ids=["named", "bare", "pair"]
)
def test_the_same_samples_give_the_same_model(folder, wrap):
    calibration = Calibration("m.onnx", CONFIG)
    for x in DATA:
        calibration.observe(wrap(x[None]))
    assert calibration.samples == 30
    result = calibration.convert("loop.onnx")
    again = onnxq.quantize_static("m.onnx", "file.onnx", [x[None] for x in DATA], CONFIG)
    assert Path("loop.onnx").read_bytes() == Path("file.onnx").read_bytes()
    assert result.quality == again.quality
    assert [one.after for one in result.corrections] == [one.after for one in again.corrections]
    assert result.request.data == "30 batches from Python"


def test_batches_are_cut_to_hold_samples_out(folder):
    with Calibration("m.onnx", CONFIG) as calibration:
        calibration.observe(DATA[:20])
        calibration.observe(DATA[20:])
        assert calibration.statistics().samples == 24
        result = calibration.convert("o.onnx")
    assert result.quality.samples == 6
    assert result.judged_on == "held-out samples"


def test_convert_after_the_block(folder):
    with Calibration("m.onnx", QuantConfig(verify="off", threads=3)) as calibration:
        for x in DATA:
            calibration.observe(x[None])
    calibration.convert("after.onnx")
    onnxq.quantize_static("m.onnx", "file.onnx", [x[None] for x in DATA], CONFIG)
    assert Path("after.onnx").read_bytes() == Path("file.onnx").read_bytes()


def test_one_may_go_on_after_converting(folder):
    calibration = Calibration("m.onnx", CONFIG)
    calibration.observe(DATA[:10])
    first = calibration.convert("a.onnx").statistics
    calibration.observe(10 * DATA[10:])
    second = calibration.convert("b.onnx").statistics
    assert (first.samples, second.samples) == (8, 24)
    assert second["x"].amax > 3 * first["x"].amax
    assert Path("a.onnx").read_bytes() != Path("b.onnx").read_bytes()


def test_no_more_samples_than_asked_for(folder):
    calibration = Calibration("m.onnx", QuantConfig(samples=7, verify="off"))
    for start in range(0, 30, 5):
        calibration.observe(DATA[start : start + 5])
    assert calibration.samples == 7


def test_statistics_are_kept_if_asked_for(folder):
    config = CONFIG.model_copy(update={"save_statistics": Path("s.npz")})
    calibration = Calibration("m.onnx", config)
    calibration.observe(DATA)
    calibration.convert("a.onnx")
    onnxq.quantize_static("m.onnx", "b.onnx", config=QuantConfig(from_table="s.npz"))
    assert Path("b.onnx").exists()


def test_a_goal_can_be_asked_for(folder):
    calibration = Calibration("m.onnx", CONFIG)
    calibration.observe(DATA)
    assert calibration.convert("o.onnx", goal=onnxq.Goal("sqnr", 20)).search is not None


def test_bad_batches(folder, caplog):
    calibration = Calibration("m.onnx", CONFIG)
    with pytest.raises(CalibrationError, match=r"batch 0: the array for input 'x' has shape \[1, 3, 8, 9\]"):
        calibration.observe(np.zeros((1, 3, 8, 9), np.float32))
    calibration = Calibration("m.onnx", QuantConfig(skip_bad_samples=True, verify="off"))
    calibration.observe(np.full((1, 3, 8, 8), np.nan, np.float32))
    calibration.observe(DATA)
    assert "skipped: batch 0" in caplog.text
    assert calibration.convert("o.onnx").skipped == 1


def test_what_is_refused_at_once(folder):
    with pytest.raises(ConfigError, match=r"samples are given to observe\(\)"):
        Calibration("m.onnx", QuantConfig(data="d.npz"))
    with pytest.raises(ModelError, match="no such file"):
        Calibration("n.onnx")
    with pytest.raises(CalibrationError, match="no batch was observed yet"):
        Calibration("m.onnx").convert("o.onnx")
    with pytest.raises(ModelError, match="would overwrite"):
        Calibration("m.onnx").convert("m.onnx")
    assert not Path("o.onnx").exists()
