"""Trials on several processes: the ranking and the model of one process, whatever happens to the workers."""

import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
from cli import TEXT, save_data, save_model
from graphs import parse

from calibrators.onnx_files import to_proto
from onnxq.cli import commands
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.distributed import worker_executor as module
from onnxq.distributed.processes import Processes
from onnxq.distributed.ray_actors import Cluster
from onnxq.distributed.scheduler import MOST_TRIES, WorkerLostError
from onnxq.distributed.worker_executor import WorkerExecutor, packed
from onnxq.distributed.worker_pool import Workers
from onnxq.pipelines import sensitivity
from onnxq.pipelines.static import quantize_static

CONFIG = QuantConfig(data="d.npz", correct=("none",), threads=1)
DEEP = """g (float[N,3,8,8] x) => (float[N,4] y)
<float[8,3,3,3] w1, float[8,8,3,3] w2, float[8,8,3,3] w3, float[8,4] v>
{ a = Conv<pads=[1,1,1,1]>(x, w1)  b = Sigmoid(a)  c = Conv<pads=[1,1,1,1]>(b, w2)  d = Relu(c)
  e = Conv<pads=[1,1,1,1]>(d, w3)  p = GlobalAveragePool(e)  f = Flatten(p)  y = MatMul(f, v) }"""

METRIC = """def worst(outputs, labels):
    return -max(float(abs(each["y"] - label).max()) for each, label in zip(outputs, labels))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Killing(Processes):
    """Processes, the first of which is killed once it has done something."""

    killed = 0

    def result(self, ticket):
        found = super().result(ticket)
        if not Killing.killed:
            Killing.killed = found[0].process
            os.kill(Killing.killed, signal.SIGKILL)
        return found


class Here:
    """A backend without processes."""

    workers = 2

    def __init__(self, job, *_):
        self._run, self._work = job.open(1), {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, unit):
        self._work[len(self._work)] = unit
        return len(self._work) - 1

    def wait(self, tickets):
        return max(tickets)

    def result(self, ticket):
        return self._run(self._work[ticket])

    def fetch(self, found):
        return found


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(module, "opened", Here)


def test_a_ranking_on_processes_survives_a_killed_one(monkeypatch, caplog):
    save_model(Path("m.onnx"), DEEP)
    monkeypatch.setattr("onnxq.distributed.worker_pool.Processes", Killing)
    monkeypatch.setattr("onnxq.algorithms.sensitivity.analysis.UNIT", 1)
    seen = []
    found = sensitivity.rank("m.onnx", CONFIG, lambda *step: seen.append(step), WorkerExecutor(Workers(2)))
    assert found == sensitivity.rank("m.onnx", CONFIG)
    assert Killing.killed
    assert "a worker was lost" in caplog.text
    assert seen[-1][1:] == (len(found), len(found))


@pytest.mark.usefixtures("here")
def test_a_goal_on_workers_gives_the_bytes_of_one_process():
    save_model(Path("m.onnx"), DEEP)
    goal = {"config": CONFIG.changed(goal="sqnr>=45", autotune="off")}
    one = quantize_static("m.onnx", "one.onnx", **goal)
    two = quantize_static("m.onnx", "two.onnx", **goal, executor=WorkerExecutor(Workers(2)))
    assert len(one.search.attempts) > 2
    assert one.search.chosen.floats == two.search.chosen.floats
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


@pytest.mark.usefixtures("here")
def test_a_metric_of_the_users_own_is_measured_on_workers(folder):
    (folder / "own.py").write_text(METRIC)
    config = CONFIG.changed(metric="own.py:worst", labels="labels.npy")
    np.save("labels.npy", np.zeros((20, 4), np.float32))
    found = sensitivity.rank("m.onnx", config, executor=WorkerExecutor(Workers(2)))
    assert found == sensitivity.rank("m.onnx", config)
    assert len({one.quality.metric.value for one in found}) > 1


@pytest.mark.usefixtures("here")
def test_what_cannot_be_sent_is_refused():
    config = CONFIG.changed(metric=lambda outputs: 0.0)
    with pytest.raises(ConfigError, match=r"cannot be sent.*FILE\.py:FUNCTION"):
        sensitivity.rank("m.onnx", config, executor=WorkerExecutor(Workers(2)))


def test_work_that_ends_every_worker_is_an_error(monkeypatch, caplog):
    class Lost(Here):
        def result(self, ticket):
            raise WorkerLostError("killed on purpose")

    monkeypatch.setattr(module, "opened", Lost)
    with pytest.raises(CalibrationError, match=f"the trials of a, b ended {MOST_TRIES} workers"):
        list(WorkerExecutor(Workers(2)).map(str.split, [("a", "b")]))
    assert caplog.text.count("2 trials are made again") == MOST_TRIES - 1


def test_a_model_that_occurs_twice_is_sent_once():
    model = parse(TEXT)
    assert len(packed([model, model])) < 1.1 * len(packed([model]))
    one, two = pickle.loads(packed([model, model]))
    assert one is two
    assert to_proto(one) == to_proto(model)


@pytest.mark.parametrize(
    ("workers", "threads"),
    [(Workers(), 1), (Workers(2), 4), (Workers(16), 1), (Workers(cluster=Cluster(cpus=3)), 3)],
)
def test_workers_share_the_threads(workers, threads, monkeypatch):
    monkeypatch.setattr("onnxq.distributed.worker_pool.processors", lambda: 8)
    assert WorkerExecutor(workers).threads == threads
    assert WorkerExecutor(workers, 5).threads == 5


@pytest.mark.parametrize(
    "options", ["--workers 2", "--ray", "--workers 2 --goal sqnr>=9 --dry-run", "--workers 2 --mode dynamic"]
)
def test_workers_are_for_a_goal(options, capsys):
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "d.npz", *options.split()]) == 2
    assert "they need --goal" in capsys.readouterr().err
    assert not Path("o.onnx").exists()


@pytest.mark.usefixtures("here")
def test_the_command(capsys):
    command = ["sensitivity", "m.onnx", "--data", "d.npz", "--correct", "none", "--json"]
    assert commands.main(command) == 0
    expected = capsys.readouterr().out
    assert commands.main([*command, "--workers", "2"]) == 0
    assert capsys.readouterr().out == expected
