"""Real models and data that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli import save_data, save_model
from hypothesis import settings

import zoo

settings.register_profile("any machine", deadline=None)  # a busy one takes its time over an example
settings.load_profile("any machine")


def _shared() -> Path:
    given = os.environ.get("ONNXQ_SHARED")
    return Path(given) if given else Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 is faster than float wherever `--autotune auto` looks: no test depends on this machine's speed."""
    monkeypatch.setattr("onnxq.algorithms.autotune.apply.is_fast", lambda *_: True)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor's integer kernels are exact: no warning depends on it."""
    monkeypatch.setattr("onnxq.pipelines.acceptance.saturates", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The working folder, with m.onnx and d.npz of as many samples as the test module's ``COUNT`` says."""
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz", request.module.COUNT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with evaluation data: ``ONNXQ_SHARED``, or ``../shared/data`` beside the checkout."""
    folder = _shared()
    if not folder.is_dir():
        pytest.skip(f"no evaluation data at {folder}: name its folder in ONNXQ_SHARED")
    return folder


@pytest.fixture(scope="session")
def calibration_images(shared_data: Path) -> Path:
    """100 ImageNet pictures, 256 x 256."""
    return shared_data / "imagenet-sample" / "calibration"


@pytest.fixture(scope="session")
def lite0_models() -> dict[str, Path]:
    """EfficientNet-Lite0 as each exporter writes it."""
    return {variant: zoo.lite0(variant) for variant in zoo.LITE0_EXPORTS}


@pytest.fixture(scope="session")
def lite0(lite0_models: dict[str, Path]) -> Path:
    """EfficientNet-Lite0 as the newest exporter writes it."""
    return lite0_models["dynamo"]


@pytest.fixture(scope="session", params=zoo.LIGHT)
def light_model(request: pytest.FixtureRequest) -> Path:
    """Each of the architectures that onnx ships, in turn."""
    return zoo.light(request.param)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A sentence encoder: ``input_ids``, ``attention_mask`` -> ``sentence_embedding``."""
    return zoo.minilm()


@pytest.fixture(scope="session")
def resnet20(shared_data: Path) -> Path:
    """ResNet-20 for CIFAR-10."""
    return zoo.resnet20(shared_data)
