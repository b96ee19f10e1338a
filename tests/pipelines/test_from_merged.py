"""A quantization from merged statistics alone is that from the data: `calibrate --with-moments`."""

from pathlib import Path

import pytest
from cli import save_data

import onnxq
from calibrators.statistics import Statistics
from onnxq.core.config import QuantConfig

COUNT = 43

pytestmark = pytest.mark.usefixtures("folder")
OPTIONS = {"verify": "off", "autotune": "off", "threads": 2}


def merged(count, **options):
    files = [f"{i}.npz" for i in range(1, count + 1)]
    for i, file in enumerate(files, 1):
        config = QuantConfig(save_statistics=file, data="d.npz", threads=2, **options)
        onnxq.calibrate("m.onnx", config=config, shard=f"{i}/{count}", with_moments=True)
    onnxq.merge(files[::-1], "s.npz")
    Path("d.npz").rename("elsewhere.npz")


@pytest.mark.parametrize("target", [None, "tensorrt"])
@pytest.mark.parametrize(
    "correct", [("bias", "rounding"), ("center", "equalize", "ranges", "rounding", "bias")]
)
def test_the_same_model_without_the_data(target, correct, caplog):
    given = {} if target is None else {"target": target}
    options = {**OPTIONS, **given, "correct": correct, "time_limit": 60}
    there = onnxq.quantize_static("m.onnx", "a.onnx", config=QuantConfig(data="d.npz", **options))
    merged(3, **given)
    caplog.clear()
    here = onnxq.quantize_static("m.onnx", "b.onnx", config=QuantConfig(from_table="s.npz", **options))
    assert [(one.name, one.kept, one.after) for one in here.corrections] == [
        (one.name, one.kept, one.after) for one in there.corrections
    ]
    assert {one.name for one in here.corrections} == set(correct)
    assert here.quality == there.quality
    assert here.judged_on == "held-out samples"
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert "not used" not in caplog.text


def test_a_goal_is_measured_on_the_samples_that_travelled():
    merged(2)
    config = QuantConfig(from_table="s.npz", goal="sqnr>=20", **OPTIONS)
    assert onnxq.quantize_static("m.onnx", "b.onnx", config=config).search is not None


def test_few_samples_judge_themselves(folder):
    save_data(folder / "d.npz", 3)
    there = onnxq.quantize_static("m.onnx", "a.onnx", config=QuantConfig(data="d.npz", **OPTIONS))
    merged(2)
    assert len(Statistics.load("s.npz").inputs.fit) == 3
    here = onnxq.quantize_static("m.onnx", "b.onnx", config=QuantConfig(from_table="s.npz", **OPTIONS))
    assert (here.judged_on, here.quality) == (there.judged_on, there.quality)


def test_without_moments_there_are_no_corrections(caplog):
    config = QuantConfig(save_statistics="s.npz", data="d.npz")
    assert onnxq.calibrate("m.onnx", config=config).inputs is None
    config = QuantConfig(from_table="s.npz", correct="bias", **OPTIONS)
    assert onnxq.quantize_static("m.onnx", "b.onnx", config=config).corrections == ()
    assert "option correct is not used" in caplog.text
