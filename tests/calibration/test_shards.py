"""Parts of a calibration: the file that they are merged to has the bytes of one run."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from calibrations import statistics, whole
from cli import TEXT, save_data, save_model
from PIL import Image

from calibrators.statistics import Statistics
from onnxq.calibration import sample_split
from onnxq.calibration.shards import Scope, Shard
from onnxq.cli import commands
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.pipelines.calibrate import calibrate, merge

COUNT = 23

pytestmark = pytest.mark.usefixtures("folder")


def parts(count, *, moments=False, **options):
    """Write the parts, and return their files in a random order."""
    files = [f"part-{i}.npz" for i in range(1, count + 1)]
    for i, file in enumerate(files, 1):
        statistics(file, Scope(Shard(i, count), moments), **options)
    random.Random(count).shuffle(files)
    return files


def merged(files, **options):
    merge(files, "merged.npz", **options)
    return Path("merged.npz").read_bytes()


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8, COUNT + 5])
def test_merged_parts_have_the_bytes_of_one_run(count, moments):
    assert merged(parts(count, moments=moments)) == whole(moments=moments)


def test_each_part_may_have_its_own_batch_size():
    for i in (1, 2):
        statistics(f"{i}.npz", Scope(Shard(i, 2)), batch_size=2 * i)
    assert merged(["2.npz", "1.npz"]) == whole()


def test_a_model_that_fixes_its_batch(folder):
    save_model(folder / "m.onnx", TEXT.replace("N,", "4,"))
    assert merged(parts(3)) == whole()
    assert Statistics.load("merged.npz").samples == 20, "the last three fill no batch"


@pytest.mark.parametrize("limit", [None, 12])
def test_bad_samples_keep_their_numbers(folder, limit):
    x = np.load("d.npz")["x"]
    x[[0, 7, 8, 9, 10, 22]] = np.nan
    save_data(folder / "d.npz", COUNT, x=x)
    options = {"skip_bad_samples": True, "samples": limit, "moments": True}
    assert merged(parts(8, **options)) == whole(**options)
    assert Statistics.load("merged.npz").samples == (14 if limit is None else 6)


def test_pictures(folder):
    (folder / "pictures").mkdir()
    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 255, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    assert merged(parts(3, data="pictures", samples=5)) == whole(data="pictures", samples=5)


def test_a_part_reads_only_its_own_samples(folder):
    (folder / "files").mkdir()
    for i in range(6):
        (folder / "files" / f"{i}.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 8), (1, 200, 3)).save(folder / "files" / "2.png")
    assert statistics("2.npz", Scope(Shard(3, 6)), data="files").samples == 1


def test_a_part_goes_on_after_an_interrupt(monkeypatch):
    from onnxq.calibration import run

    expected = merged(parts(2))
    Path("part-2.npz").unlink()
    after = run.Checkpoint.after

    def interrupted(self, batch, names):
        if self.samples == 5:
            raise KeyboardInterrupt
        return after(self, batch, names)

    with monkeypatch.context() as patch:
        patch.setattr(run.Checkpoint, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            statistics("part-2.npz", Scope(Shard(2, 2)))
    with pytest.raises(CalibrationError, match=r"interrupted: part-2\.npz.*--allow-missing"):
        merge(["part-1.npz", "part-2.npz"], "merged.npz")
    statistics("part-2.npz", Scope(Shard(2, 2)))
    assert merged(["part-1.npz", "part-2.npz"]) == expected


def test_missing_parts_are_named_and_may_be_allowed(caplog):
    files = sorted(parts(4))
    with pytest.raises(
        CalibrationError, match=r"missing parts \(of 4\): 2, 3, with samples 5 to 10, 11 to 16"
    ):
        merged([files[0], files[3]])
    assert not Path("merged.npz").exists()
    merged([files[0], files[3]], allow_missing=True)
    found = Statistics.load("merged.npz")
    assert (found.samples, found.complete) == (11, False)
    assert "missing parts (of 4): 2, 3" in caplog.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"samples": 20}, "other.npz is a part of another calibration than part-.*: options? samples .*20"),
        ({"every_element": True}, "option every_element True instead of"),
        ({"target": "tensorrt"}, "option target tensorrt instead of"),
        ({"moments": True}, "option with_moments True instead of"),
    ],
)
def test_parts_of_other_options_are_refused(change, match):
    files = parts(2)
    moments = change.pop("moments", False)
    statistics("other.npz", Scope(Shard(2, 2), moments), **change)
    with pytest.raises(CalibrationError, match=match):
        merged(["part-1.npz", "other.npz"])
    assert len(files) == 2


def test_parts_of_another_model_or_version_are_refused(folder, monkeypatch):
    parts(2)
    with monkeypatch.context() as patch:
        patch.setattr("onnxq.calibration.shards.versions", lambda: {"onnxq": "9.9"})
        statistics("newer.npz", Scope(Shard(2, 2)))
    with pytest.raises(CalibrationError, match=r"newer\.npz .*version onnxq 9\.9 instead of"):
        merged(["part-1.npz", "newer.npz"])
    save_model(folder / "m.onnx", v=np.ones((8, 4), np.float32))
    statistics("other.npz", Scope(Shard(2, 2)))
    with pytest.raises(CalibrationError, match=r"other\.npz .*the model differs"):
        merged(["part-1.npz", "other.npz"])


def test_doubled_parts_and_whole_runs_are_refused(folder):
    parts(2)
    Path("copy.npz").write_bytes(Path("part-1.npz").read_bytes())
    with pytest.raises(CalibrationError, match=r"part 1/2 is given twice: part-1\.npz and copy\.npz"):
        merged(["part-1.npz", "copy.npz", "part-2.npz"])
    with pytest.raises(CalibrationError, match=r"part-1\.npz is given twice"):
        merged(["part-1.npz", "part-1.npz"])
    statistics("part-9.npz", Scope(Shard(1, 9)))
    with pytest.raises(CalibrationError, match=r"part-9\.npz is part 1/9, but part-1\.npz is part 1/2"):
        merged(["part-1.npz", "part-9.npz"])
    whole()
    with pytest.raises(CalibrationError, match=r"whole\.npz is no part"):
        merged(["part-1.npz", "whole.npz"])


def test_iterables_have_no_numbers():
    with pytest.raises(CalibrationError, match="give the path of the data"):
        calibrate("m.onnx", [{"x": np.zeros((1, 3, 8, 8))}], scope=Scope(Shard(1, 2)))


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "²/3"])
def test_wrong_shards(text):
    with pytest.raises(ConfigError, match="I from 1 to N"):
        Shard.parse(text)


@pytest.mark.parametrize(("total", "block"), list(itertools.product([0, 1, 7, 64, 100], [1, 4])))
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_shards_cover_all_samples_once(total, block, count):
    ranges = [Shard(i, count).numbers(total, block) for i in range(1, count + 1)]
    assert [n for each in ranges for n in each] == list(range(total))
    assert all(each.start % block == 0 for each in ranges if each)


def test_kept_inputs_are_bounded_in_every_part(monkeypatch):
    monkeypatch.setattr(sample_split, "KEPT_SAMPLES", 4)
    monkeypatch.setattr(sample_split, "HELD_SAMPLES", 2)
    files = parts(3, moments=True)
    assert max(len(Statistics.load(file).inputs.fit) for file in files) <= 2
    assert merged(files) == whole(moments=True)
    inputs = Statistics.load("merged.npz").inputs
    assert (sorted(inputs.held), sorted(inputs.fit)) == ([4, 9], [0, 8, 16])


def test_commands():
    for i in (1, 2):
        assert commands.main(["calibrate", "m.onnx", f"{i}.npz", "--data", "d.npz", "--shard", f"{i}/2"]) == 0
    assert commands.main(["calibrate", "m.onnx", "whole.npz", "--data", "d.npz"]) == 0
    assert commands.main(["merge", "2.npz", "1.npz", "all.npz"]) == 0
    assert Path("all.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert commands.main(["merge", "1.npz", "all.npz"]) == 1
