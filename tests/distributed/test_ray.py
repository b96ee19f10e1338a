"""Ray: actors and datasets on a local cluster of two CPUs give the bytes of one process."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from calibrations import config, whole
from cli import save_data

from calibrators.statistics import Statistics
from onnxq.calibration.shards import Scope
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.distributed.calibration_run import calibrate_on
from onnxq.distributed.datasets import calibrate_dataset
from onnxq.distributed.ray_actors import Cluster, RayActors, fitted
from onnxq.distributed.worker_executor import WorkerExecutor
from onnxq.distributed.worker_pool import Workers
from onnxq.pipelines import sensitivity
from onnxq.pipelines.calibrate import calibrate

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

COUNT = 60
TWO = Cluster(workers=2, cpus=0.5)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for all tests; its workers find the project and the test helpers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.mark.parametrize("moments", [False, True])
def test_actors(moments):
    calibrate_on("m.onnx", config(batch_size=4), Workers(cluster=TWO), scope=Scope(moments=moments))
    assert Path("s.npz").read_bytes() == whole(moments=moments)


def test_trials_on_actors():
    options = QuantConfig(data="d.npz", correct=("none",))
    found = sensitivity.rank("m.onnx", options, executor=WorkerExecutor(Workers(cluster=TWO)))
    assert found == sensitivity.rank("m.onnx", options)


def test_a_killed_actor_is_replaced(monkeypatch, caplog):
    result, killed = RayActors.result, []

    def killing(self, ticket):
        found = result(self, ticket)
        if not killed and found[0] is not None:
            killed.append(found[0].process)
            os.kill(found[0].process, signal.SIGKILL)
        return found

    monkeypatch.setattr(RayActors, "result", killing)
    calibrate_on("m.onnx", config(), Workers(cluster=TWO))
    assert Path("s.npz").read_bytes() == whole()
    assert "samples are counted again" in caplog.text


def test_an_interrupt_keeps_what_is_counted_and_the_next_run_goes_on(caplog):
    def progress(stage, done=0, total=None):
        if done > COUNT // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_on("m.onnx", config(), Workers(cluster=TWO), progress)
    kept = Statistics.load("s.npz")
    assert (kept.complete, kept.samples > COUNT // 2) == (False, True)
    calibrate_on("m.onnx", config(), Workers(cluster=TWO))
    assert Path("s.npz").read_bytes() == whole()
    assert f"continuing an interrupted calibration after {kept.samples} samples" in caplog.text


def test_an_error_of_a_sample_comes_through(folder):
    x = np.load("d.npz")["x"]
    x[33] = np.nan
    save_data(folder / "d.npz", COUNT, x=x)
    with pytest.raises(CalibrationError, match=r"d\.npz\[33\].*NaN"):
        calibrate_on("m.onnx", config(), Workers(cluster=TWO))


@pytest.fixture
def rows():
    x = np.load("d.npz")["x"]
    return ray.data.from_items([{"x": each, "id": i} for i, each in enumerate(x)], override_num_blocks=4)


def same(statistics):
    """Whether statistics of a dataset are those of the file, but for the names of samples."""
    expected = calibrate("m.onnx", config=QuantConfig(data="d.npz"))
    facts = (lambda s: (s.samples, s.span, s.fingerprint), lambda s: list(s))
    return all(fact(statistics) == fact(expected) for fact in facts) and all(
        (one.low, one.high, one.lowest.number, one.count, one.trail, one.histogram.exponent)
        == (two.low, two.high, two.lowest.number, two.count, two.trail, two.histogram.exponent)
        and (one.histogram.counts == two.histogram.counts).all()
        for one, two in ((statistics[name], expected[name]) for name in expected)
    )


def test_a_dataset_in_order_and_shuffled(rows):
    assert same(calibrate_dataset("m.onnx", rows.drop_columns(["id"]), cluster=Cluster(workers=1, cpus=0.5)))
    files = []
    for dataset in (rows, rows.repartition(7).random_shuffle(seed=1)):
        settings = QuantConfig(save_statistics=f"{len(files)}.npz")
        calibrate_dataset("m.onnx", dataset, settings, TWO, number="id")
        files.append(Path(f"{len(files)}.npz").read_bytes())
    assert files[0] == files[1]


def test_parquet(rows, folder):
    rows.map_batches(lambda b: {"x": b["x"].reshape(len(b["x"]), -1), "id": b["id"]}).write_parquet(
        str(folder / "p")
    )
    found = calibrate_dataset("m.onnx", ray.data.read_parquet(str(folder / "p")), cluster=TWO, number="id")
    assert same(found)


def test_a_killed_actor_of_a_dataset(rows, monkeypatch):
    """Ray Data repeats the block of an actor that dies, so that each is counted once."""
    victims = []

    def kill_one():
        deadline = time.monotonic() + 60
        while not victims and time.monotonic() < deadline:
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                if b"ray::" in (text := process.read_bytes()) and b"BlockCounter" in text:
                    victims.append(int(process.parent.name))
                    os.kill(victims[0], signal.SIGKILL)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert same(calibrate_dataset("m.onnx", rows, cluster=TWO, number="id"))
    thread.join()
    assert victims


@pytest.mark.parametrize(
    ("cluster", "readers", "match"),
    [
        (Cluster(workers=2), 0.5, r"leaves none to read the data.*--cpus-per-worker 0\.75 or --workers 1"),
        (Cluster(workers=3), 0.0, r"3 workers of 1 CPUs take 3 of 2 CPUs.*--workers 2"),
        (Cluster(workers=1, gpus=1), 0.0, "a cluster with GPUs"),
        (Cluster(workers=1, cpus=0), 0.0, "give a positive number"),
    ],
)
def test_pools_that_would_wait_for_ever_are_refused(cluster, readers, match):
    with pytest.raises(ConfigError, match=match):
        fitted(cluster, {"CPU": 2.0}, readers)


def test_pools_that_fit():
    assert fitted(Cluster(), {"CPU": 2.0}).workers == 2
    assert fitted(Cluster(), {"CPU": 2.0}, 0.5).workers == 1
    assert fitted(Cluster(cpus=0.5), {"CPU": 2.0}, 0.5).workers == 3
    assert fitted(Cluster(gpus=1, cpus=0), {"CPU": 2.0, "GPU": 4.0}).workers == 4
