"""Several processes give the bytes of one, whatever happens to them."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from calibrations import config, whole
from cli import save_data

from calibrators.statistics import Statistics
from onnxq.calibration.shards import Scope, Shard
from onnxq.cli import commands
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError
from onnxq.distributed import calibration_run as module
from onnxq.distributed.calibration_run import calibrate_on
from onnxq.distributed.counting import Counted, Counter, Job, pack, packed_model, units, unpack
from onnxq.distributed.processes import Processes
from onnxq.distributed.scheduler import FAN_IN, Schedule, WorkerLostError
from onnxq.distributed.worker_pool import Workers
from onnxq.pipelines.calibrate import calibrate, merge
from onnxq.pipelines.prepare import prepare_for_all

COUNT = 90

pytestmark = pytest.mark.usefixtures("folder")


class Here:
    """A backend without processes, which loses the results of some work."""

    workers = 2

    def __init__(self, job, lost=(), order=-1):
        self._counter, self._lost, self._order = Counter(job, 1), set(lost), order
        self._work, self.counted, self.merged = {}, [], 0

    def submit(self, unit):
        self.counted.append(unit)
        return self._ticket(lambda: self._counter.of_range(unit))

    def merge(self, parts):
        self.merged += 1
        from onnxq.distributed.counting import merge_packed

        return self._ticket(lambda: (None, merge_packed(parts)))

    def _ticket(self, work):
        number = len(self._work)
        self._work[number] = work
        return number

    def wait(self, tickets):
        return sorted(tickets)[self._order]

    def result(self, ticket):
        if ticket in self._lost:
            raise WorkerLostError("lost on purpose")
        return self._work[ticket]()

    def fetch(self, packed):
        return packed


def job(moments=False, **options):
    simple, tensors = prepare_for_all("m.onnx", QuantConfig(), means=moments)
    return Job(packed_model(simple), tensors, QuantConfig(data="d.npz", **options), "d.npz", moments, COUNT)


def counted(here):
    schedule = Schedule(here, units(range(COUNT), 1))
    statistics = unpack(schedule.run(lambda *_: None).packed)
    statistics.save("s.npz")
    return Path("s.npz").read_bytes(), schedule


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("order", [0, -1])
def test_lost_work_is_done_again_exactly_once(order, moments, caplog):
    expected = whole(moments=moments)
    here = Here(job(moments), lost={1, 4, 9, 14}, order=order)
    found, schedule = counted(here)
    assert found == expected
    assert len(here.counted) == len(list(units(range(COUNT), 1))) + schedule.totals.recounted
    assert schedule.totals.recounted >= 4
    assert "samples are counted again" in caplog.text


def test_a_lost_merge_counts_its_units_again():
    here = Here(job(), lost={FAN_IN}, order=0)  # the first merge
    here.workers = FAN_IN
    found, schedule = counted(here)
    assert found == whole()
    assert schedule.totals.recounted > 0


def test_a_unit_that_ends_every_worker_is_an_error():
    with pytest.raises(CalibrationError, match="samples 0 to 7 ended 3 workers"):
        counted(Here(job(), lost=range(100), order=0))


def test_other_versions_of_workers_are_refused(monkeypatch):
    here = Here(job())
    monkeypatch.setattr(here, "result", lambda _: (Counted(versions={"onnxq": "0"}), b""))
    with pytest.raises(CalibrationError, match="install the same versions"):
        counted(here)


def test_units_cover_all_samples_and_keep_batches():
    for total, block in ((1, 1), (90, 1), (2000, 1), (100_000, 8)):
        made = list(units(range(total), block))
        assert [number for unit in made for number in unit] == list(range(total))
        assert all(unit.start % block == 0 for unit in made)


@pytest.mark.parametrize("command", ["--workers 2", "--workers 2 --with-moments --batch-size 4"])
def test_processes(command):
    expected = whole(moments="--with-moments" in command)
    assert commands.main(["calibrate", "m.onnx", "s.npz", "--data", "d.npz", *command.split()]) == 0
    assert Path("s.npz").read_bytes() == expected


def test_a_part_on_several_workers(monkeypatch):
    expected = whole()
    monkeypatch.setattr(module, "opened", lambda job, *_: _entered(Here(job)))
    for i in (1, 2):
        calibrate_on("m.onnx", config(f"{i}.npz"), Workers(2), scope=Scope(Shard(i, 2)))
    merge(["2.npz", "1.npz"], "s.npz")
    assert Path("s.npz").read_bytes() == expected


def test_a_killed_process_is_replaced(caplog):
    killed = []

    class Killing(Processes):
        def result(self, ticket):
            found = super().result(ticket)
            if not killed and found[0] is not None:
                killed.append(found[0].process)
                os.kill(found[0].process, signal.SIGKILL)
            return found

    expected = whole()
    with Killing(job(), 2, 1) as processes:
        assert counted(processes)[0] == expected
    assert killed
    assert "samples are counted again" in caplog.text


def test_an_interrupt_keeps_what_is_counted_and_the_next_run_goes_on(monkeypatch, caplog):
    expected = whole()
    asked = []
    opened = []

    def here(job, workers, config):
        opened.append(Here(job))
        return _entered(opened[-1])

    def progress(stage, done=0, total=None):
        asked.append(done)
        if len(opened) == 1 and done > COUNT // 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "opened", here)
    with pytest.raises(KeyboardInterrupt):
        calibrate_on("m.onnx", config("s.npz"), Workers(2), progress)
    kept = Statistics.load("s.npz")
    assert not kept.complete
    assert kept.samples > COUNT // 2
    with pytest.raises(CalibrationError, match="with other options"):
        calibrate_on("m.onnx", config("s.npz", every_element=True), Workers(2), progress)
    calibrate_on("m.onnx", config("s.npz"), Workers(1), progress)
    assert Path("s.npz").read_bytes() == expected
    assert sum(map(len, opened[-1].counted)) == COUNT - kept.samples
    assert f"continuing an interrupted calibration after {kept.samples} samples" in caplog.text


class _entered:
    def __init__(self, value):
        self._value = value

    def __enter__(self):
        return self._value

    def __exit__(self, *_):
        pass


def test_bad_samples(folder, monkeypatch, caplog):
    x = np.load("d.npz")["x"]
    x[[0, 40]] = np.nan
    save_data(folder / "d.npz", COUNT, x=x)
    monkeypatch.setattr(module, "opened", lambda job, *_: _entered(Here(job)))
    calibrate_on("m.onnx", config("s.npz", skip_bad_samples=True), Workers(2))
    assert "2 of 90 samples were bad" in caplog.text
    assert Path("s.npz").read_bytes() == whole(skip_bad_samples=True)
    with pytest.raises(CalibrationError, match=r"d\.npz\[(0|40)\].*NaN"):
        calibrate_on("m.onnx", config("t.npz"), Workers(2))


def test_packed_statistics_are_small():
    statistics = calibrate("m.onnx", config=QuantConfig(data="d.npz"))
    assert len(pack(statistics)) < 40_000


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--cpus-per-worker 1", "are for --ray"),
        ("--workers many", "expected a number"),
    ],
)
def test_options_that_do_not_go_together(options, match, capsys):
    assert commands.main(["calibrate", "m.onnx", "s.npz", "--data", "d.npz", *options.split()]) == 2
    assert match in capsys.readouterr().err
