"""The check on a GPU, with a worker that stands for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_check
import numpy as np
import onnx
import pytest
from precision_peers import Made

from calibrators.session import open_session
from calibrators.statistics.collection import Statistics
from calibrators.statistics.tensor import Extreme, TensorStatistics
from cases import Case
from onnxq.verify.process import Answer

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }"""

CONTENT = {"ran": True, "milliseconds": [1.0, 2.0, 9.0], "profile": {"relu": 0.5, "copy": 0.1}}


@pytest.fixture
def place(tmp_path: Path) -> gpu_check.Place:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    return gpu_check.Place(Case(tmp_path / "m.onnx", tmp_path, lambda: [{"x": x}]), tmp_path)


def worker(times: float) -> Any:
    """A worker that computes the right outputs times a number."""

    def run(name: str, arguments: list[Any], seconds: float) -> Answer:
        path, inputs, outputs, _, runs = arguments
        assert (name, runs) == ("build_engine", "100")
        (y,) = open_session(path).run(None, dict(np.load(inputs)))
        np.savez(outputs, y=y * times)
        return Answer(CONTENT)

    return run


@pytest.mark.parametrize(("times", "wrong"), [(1, ""), (2, "below 50 dB")])
def test_an_engine_is_compared_with_onnxruntime(monkeypatch, place, times, wrong) -> None:
    monkeypatch.setattr(gpu_check, "FORMS", {"float32": gpu_check.FORMS["float32"]})
    monkeypatch.setattr(gpu_check, "run_in_process", worker(times))
    ((form, _, _, milliseconds, slowest, found),) = gpu_check.engines(place)
    assert (form, milliseconds, slowest, found) == ("float32", "2.000", "relu: 0.500\ncopy: 0.100", wrong)


def test_a_form_that_is_not_made_is_named(monkeypatch, place) -> None:
    monkeypatch.setattr(gpu_check, "FORMS", {"fp8": lambda case, output: Made(word="skipped: none")})
    assert [row[-1] for row in gpu_check.engines(place)] == ["skipped: none"]


def test_ranges_are_compared() -> None:
    def statistics(high: float) -> Statistics:
        tensor = TensorStatistics()
        tensor.lowest, tensor.highest = Extreme(-1.0), Extreme(high)
        return Statistics({"x": tensor}, 1)

    assert gpu_check.difference(statistics(3.0), statistics(3.0)) == 0
    assert gpu_check.difference(statistics(3.4), statistics(3.0)) == pytest.approx(0.1)


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "missing", lambda: "there is no GPU")
    assert gpu_check.main() == 2
    assert capsys.readouterr().out == "gpu_check: nothing was checked: there is no GPU\n"
