"""The calibration of one process, on the data of the fixture `folder`, which others must equal."""

from __future__ import annotations

from pathlib import Path

from calibrators.statistics import Statistics
from onnxq.calibration.shards import WHOLE, Scope
from onnxq.core.config import QuantConfig
from onnxq.pipelines.calibrate import calibrate


def config(file: str = "s.npz", **options: object) -> QuantConfig:
    """Options that save the statistics of the folder's data to ``file``."""
    return QuantConfig(**{"data": "d.npz", "save_statistics": file, **options})


def statistics(file: str, scope: Scope = WHOLE, **options: object) -> Statistics:
    """Calibrate in this process, and save the statistics to ``file``."""
    return calibrate("m.onnx", config=config(file, threads=2, **options), scope=scope)


def whole(*, moments: bool = False, **options: object) -> bytes:
    """The bytes that one process writes for all the data."""
    statistics("whole.npz", Scope(moments=moments), **options)
    return Path("whole.npz").read_bytes()
