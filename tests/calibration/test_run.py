"""Samples -> statistics through interrupts, bad samples and foreign files; `onnxq.calibrate`."""

import logging
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli import TEXT, environment, save_data, save_model

import onnxq
from calibrators.statistics import Statistics
from onnxq.cli import commands
from onnxq.core.config import QuantConfig
from onnxq.pipelines.calibrate import calibrate
from onnxq.pipelines.static import quantize_static
from onnxq.targets import TARGETS

COUNT = 23
STATISTICS = Path("s.npz")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a model ``m.onnx`` and data ``d.npz``."""
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz", COUNT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def items(path="d.npz"):
    return [{"x": row[None]} for row in np.load(path)["x"]]


def interrupted_after(number, source):
    """The items of ``source``, and then Ctrl-C."""
    yield from source[:number]
    raise KeyboardInterrupt


def config(**options):
    return QuantConfig(save_statistics=STATISTICS, threads=2, **options)


def quantized(data, output="o.onnx", **options):
    """Quantize without what is decided by measured times, which differ between runs."""
    return quantize_static("m.onnx", output, data, config(**{"floor": 0.0, "autotune": "off", **options}))


def interrupt(number, **options):
    """Stop a calibration after ``number`` items."""
    with pytest.raises(KeyboardInterrupt):
        quantized(interrupted_after(number, items()), **options)


def in_one_piece(data=None, **options):
    """The bytes of the statistics and of the model that come without an interrupt."""
    quantized(items() if data is None else data, "whole.onnx", **options)
    whole = STATISTICS.read_bytes()
    STATISTICS.unlink()
    return whole, Path("whole.onnx").read_bytes()


def outcome():
    return STATISTICS.read_bytes(), Path("o.onnx").read_bytes()


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("method", ["mse", "moving-average"])
@pytest.mark.parametrize("number", [8, 12, COUNT])
def test_what_goes_on_after_an_interrupt_ends_as_if_there_had_been_none(number, batch_size, method, caplog):
    options = {"batch_size": batch_size, "method": method}
    whole = in_one_piece(**options)
    interrupt(number, **options)
    kept = Statistics.load(STATISTICS)
    assert not kept.complete
    assert not Path("o.onnx").exists()
    assert f"{kept.samples} samples are kept in s.npz; run the same command again to continue" in caplog.text
    quantized(items(), **options)
    assert outcome() == whole
    assert Statistics.load(STATISTICS).complete


def test_several_interrupts():
    whole = in_one_piece(batch_size=2)
    for number in (5, 9, 14):
        interrupt(number, batch_size=2)
    assert Statistics.load(STATISTICS).samples == 12 - 2, "two were held out, two of a batch may be lost"
    quantized(items(), batch_size=2)
    assert outcome() == whole


def test_an_interrupt_while_passing_over_leaves_the_file():
    interrupt(14)
    kept = STATISTICS.read_bytes()
    interrupt(6)
    assert STATISTICS.read_bytes() == kept


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (3, 4)])
def test_the_batch_size_may_change(before, after):
    whole = in_one_piece()
    interrupt(11, batch_size=before)
    quantized(items(), batch_size=after)
    found, one = Statistics.load(STATISTICS), STATISTICS.with_name("one.npz")
    one.write_bytes(whole[0])
    expected = Statistics.load(one)
    assert (found.samples, found.checksum) == (expected.samples, expected.checksum)
    assert all(
        (found[name].low, found[name].high, found[name].count)
        == (expected[name].low, expected[name].high, expected[name].count)
        for name in expected
    )


def test_a_model_that_fixes_its_batch(folder):
    save_model(folder / "m.onnx", TEXT.replace("N,", "4,"))
    whole = in_one_piece()
    interrupt(14)
    assert Statistics.load(STATISTICS).samples in (4, 8)
    quantized(items())
    assert outcome() == whole


def test_batches_of_many_samples_each():
    x = np.load("d.npz")["x"]
    loader = [{"x": x[i : i + 4]} for i in range(0, COUNT, 4)]
    whole = in_one_piece(loader)
    with pytest.raises(KeyboardInterrupt):
        quantized(interrupted_after(3, loader))
    assert Statistics.load(STATISTICS).samples in (8, 12)
    quantized(loader)
    assert outcome() == whole


def test_too_early_to_keep_anything():
    interrupt(0)
    assert not STATISTICS.exists()


def test_without_a_file_nothing_is_kept(folder):
    before = sorted(folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        quantize_static("m.onnx", "o.onnx", interrupted_after(9, items()))
    assert sorted(folder.iterdir()) == before


def test_an_interrupt_while_saving_loses_nothing(monkeypatch):
    """It hits the statistics when all samples are counted already."""
    save, calls = Statistics.save, []

    def broken(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        save(*args, **options)

    whole = in_one_piece()
    monkeypatch.setattr(Statistics, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        quantized(items())
    assert Statistics.load(STATISTICS).span == (0, COUNT - 4)
    quantized(items())
    assert outcome() == whole


SLOW = """
import sys, time
from onnxq import cli
from onnxq.calibration import sample_split
from calibrators.data.samples import DataSource
opened = sample_split.open_data
def slow(*args, **options):
    source = opened(*args, **options)
    def read():
        for number, sample in enumerate(source):
            if number == 11:
                print("here", file=sys.stderr, flush=True)
                for _ in range(1000):  # a signal just before a long sleep would be noticed after it
                    time.sleep(0.1)
            yield sample
    return DataSource(read, source.total)
sample_split.open_data = slow
sys.exit(cli.main())
"""


def listen():
    """Take interrupts, although we may run in the background of a shell, where they are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("batch_size", "number"), [("1", signal.SIGINT), ("3", signal.SIGTERM)])
@pytest.mark.parametrize(
    "command", [["quantize", "m.onnx", "o.onnx", "--save-statistics"], ["calibrate", "m.onnx"]]
)
def test_a_process_that_is_interrupted_goes_on(command, batch_size, number, capsys):
    options = ["--data", "d.npz", "--quiet", "--batch-size", batch_size]
    assert commands.main([*command, "whole.npz", *options]) == 0
    written = Path("o.onnx").read_bytes() if command[0] == "quantize" else b""
    Path("o.onnx").unlink(missing_ok=True)
    command = [*command, "s.npz", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=listen,
    )
    assert "here\n" in iter(process.stderr.readline, "")
    process.send_signal(number)
    told = process.stderr.read().splitlines()
    assert process.wait() == 1
    kept = Statistics.load(STATISTICS).samples
    assert told == [
        f"warning: interrupted: {kept} samples are kept in s.npz; run the same command again to continue",
        "error: interrupted",
    ]
    assert 0 < kept <= 11
    assert not Path("o.onnx").exists()
    assert commands.main(command) == 0
    said = f"warning: s.npz: continuing an interrupted calibration after {kept} samples\n"
    assert capsys.readouterr().err == said
    assert STATISTICS.read_bytes() == Path("whole.npz").read_bytes()
    assert not written or Path("o.onnx").read_bytes() == written


# --- data from Python -----------------------------------------------------------------------------

TWO = """g (int64[N,L] ids, float[N,L,8] noise) => (float[N,L,4] y) <float[20,8] t, float[8,4] w>
{ e = Gather(t, ids)  h = Add(e, noise)  y = MatMul(h, w) }"""


class Sentences:
    """A PyTorch data set of (inputs by name, label), of several lengths."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        rng, length = np.random.default_rng(index), 3 + index // 8
        noise = rng.standard_normal((length, 8), np.float32)
        return {"noise": noise, "ids": rng.integers(0, 20, length), "length": length}, index


@pytest.fixture
def loader(folder):
    """Batches of four sentences with labels, for a model of two inputs."""
    utils = pytest.importorskip("torch.utils.data")
    save_model(folder / "m.onnx", TWO)
    return utils.DataLoader(Sentences(), batch_size=4)


def test_a_loader_of_several_inputs_and_shapes(loader):
    whole = in_one_piece(loader)
    with pytest.raises(KeyboardInterrupt):
        quantized(interrupted_after(4, list(loader)))
    result = quantized(loader)
    assert outcome() == whole
    assert (result.statistics.samples, result.quality.samples) == (20, 4)


def test_a_folder_of_batches_of_several_inputs_and_shapes(folder, loader):
    (folder / "d").mkdir()
    for i, (batch, _) in enumerate(loader):
        np.savez(folder / "d" / f"{i}.npz", ids=batch["ids"], noise=batch["noise"])
    result = quantized("d", batch_size=3)
    assert (result.statistics.samples, result.quality.samples) == (20, 4)
    ours = calibrate("m.onnx", "d", QuantConfig(batch_size=3))
    theirs = calibrate("m.onnx", loader)
    assert {n: (t.low, t.high, t.count) for n, t in ours.items()} == {
        n: (t.low, t.high, t.count) for n, t in theirs.items()
    }


# --- sources larger than memory --------------------------------------------------------------------


LARGE = "g (float[N,500,400] x) => (float[N,500,2] y) <float[400,2] w> { y = MatMul(x, w) }"
BYTES = 800_000
"""Of one sample: long rather than wide, because rounding takes its time by the width."""


def generator(number):
    rng = np.random.default_rng(0)
    return ({"x": rng.standard_normal((1, 500, 400), np.float32)} for _ in range(number))


def stored(number):
    """Written row by row, so that making the file does not take what reading it must not."""
    path = Path("big.npy")
    file = np.lib.format.open_memmap(path, "w+", np.float32, (number, 500, 400))
    for row, item in zip(file, generator(number), strict=True):
        row[:] = item["x"]
    file.flush()
    return path


@pytest.mark.parametrize("source", [generator, stored])
def test_memory_does_not_grow_with_the_data(folder, source, monkeypatch):
    save_model(folder / "m.onnx", LARGE, w=np.random.default_rng(1).standard_normal((400, 2), np.float32))
    monkeypatch.setattr("onnxq.calibration.sample_split.HELD_BYTES", 4 * BYTES)
    peaks = []
    for number in (40, 120):
        data = source(number)
        tracemalloc.start()
        # On two threads it is chance how many batches are loaded at the same time.
        quantize_static("m.onnx", "o.onnx", data, QuantConfig(threads=1, batch_size=2))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 5 * BYTES, "80 samples more"


# --- what does not fit together -------------------------------------------------------------------


def refused(data, match, **options):
    """Going on is refused, and what was kept stays."""
    kept = STATISTICS.read_bytes()
    with pytest.raises(onnxq.CalibrationError, match=match) as caught:
        quantized(data, **options)
    assert "delete the file to start again" in str(caught.value)
    assert STATISTICS.read_bytes() == kept
    assert not Path("o.onnx").exists()


def test_going_on_with_another_model(folder):
    interrupt(14)
    save_model(folder / "m.onnx", TEXT.replace("GlobalAveragePool", "GlobalMaxPool"))
    refused(items(), r"s\.npz holds \d+ samples of a calibration that was interrupted, for another model")


def test_going_on_with_other_weights():
    interrupt(14)
    model = onnx.load("m.onnx")
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.01)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    onnx.save(model, "m.onnx")
    refused(items(), "for another model")


def test_going_on_with_options_that_observe_other_tensors():
    interrupt(14)
    refused(items(), "with other options", exclude="op:MatMul")


def test_going_on_with_other_data():
    interrupt(14)
    changed = items()
    changed[2] = {"x": changed[2]["x"] + np.float32(1e-6)}
    refused(changed, "on other data")
    refused([*items()[1::-1], *items()[2:]], "in another order")
    refused(items()[:8], "on other data")


def test_complete_statistics_are_overwritten():
    quantized(items())
    before = STATISTICS.read_bytes()
    quantized(items()[:10])
    assert STATISTICS.read_bytes() != before
    assert Statistics.load(STATISTICS).samples == 8


def test_a_foreign_file_is_overwritten():
    STATISTICS.write_text("notes")
    quantized(items())
    assert Statistics.load(STATISTICS).complete


# --- from a table ---------------------------------------------------------------------------------


def from_table(**options):
    return quantize_static("m.onnx", "t.onnx", config=QuantConfig(from_table=STATISTICS, **options))


def test_incomplete_statistics_serve_with_a_warning():
    interrupt(14)
    (warning,) = from_table().warnings
    kept = Statistics.load(STATISTICS).samples
    assert warning.startswith(f"INCOMPLETE STATISTICS: calibration was interrupted after {kept} samples")
    onnx.checker.check_model("t.onnx")


def test_statistics_of_another_model_serve_with_a_warning():
    quantized(items())
    assert from_table().warnings == ()
    model = onnx.load("m.onnx")
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(2)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    onnx.save(model, "m.onnx")
    (warning,) = from_table().warnings
    assert warning.startswith("STATISTICS OF ANOTHER MODEL")


# --- bad samples ----------------------------------------------------------------------------------

LOOKUP = """g (int64[N,4] x) => (float[N,4,3] y) <float[8,6] t, float[6,3] w>
{ e = Gather(t, x)  y = MatMul(e, w) }"""
"""A model that refuses what is beyond its table."""


def ids(count, bad=()):
    """Ids that the model takes, but for the samples ``bad``."""
    rows = np.random.default_rng(0).integers(0, 8, (count, 4))
    rows[list(bad), 0] = 99
    return rows


def good(rows):
    return rows[(rows < 8).all(axis=1)]


@pytest.fixture
def lookup(folder):
    save_model(folder / "m.onnx", LOOKUP)


@pytest.mark.parametrize("skip", [False, True])
def test_samples_that_cannot_be_used(skip, caplog):
    data = items()
    data[3] = {"x": np.full((1, 3, 8, 8), np.nan, np.float32)}
    data[5] = {"x": np.zeros((1, 3, 9, 9), np.float32)}
    if not skip:
        with pytest.raises(onnxq.CalibrationError, match=r"item 3 of .* NaN .*--skip-bad-samples"):
            quantized(data)
        return
    result = quantized(data, skip_bad_samples=True)
    assert result.skipped == 2
    assert [text.split(":")[1] for text in caplog.messages] == [f" item {i} of the data" for i in (3, 5)]
    assert result.quality.samples + result.statistics.samples == COUNT - 2
    clean = quantized([item for i, item in enumerate(data) if i not in (3, 5)], "clean.onnx")
    assert clean.skipped == 0
    assert Path("clean.onnx").read_bytes() == Path("o.onnx").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_samples_that_the_model_refuses(lookup, batch_size, caplog):
    """Not 4, 9, …: those are held out, and only used to validate."""
    rows = ids(30, bad=[1, 11, 12])
    np.savez("d.npz", x=rows)
    with pytest.raises(onnxq.CalibrationError, match=r"the model cannot run d\.npz\[1\].*--skip-bad-samples"):
        quantized("d.npz", batch_size=batch_size)
    result = quantized("d.npz", batch_size=batch_size, skip_bad_samples=True)
    assert result.skipped == 3
    named = [text.split(":")[1] for text in caplog.messages]
    assert named == [f" the model cannot run d.npz[{i}]" for i in (1, 11, 12)]
    assert result.statistics.samples == 24 - 3
    assert result.statistics["e"].samples == 21
    assert any("3 of 30 SAMPLES WERE BAD" in warning for warning in result.warnings)


def test_held_out_samples_that_the_model_refuses(lookup):
    np.savez("d.npz", x=ids(30, bad=[9]))
    with pytest.raises(onnxq.CalibrationError, match=r"cannot run d\.npz\[9\]"):
        quantized("d.npz")
    STATISTICS.unlink()
    result = quantized("d.npz", skip_bad_samples=True)
    assert (result.skipped, result.quality.samples) == (1, 5)


def test_all_samples_are_refused(lookup):
    np.savez("d.npz", x=ids(8, bad=range(8)))
    with pytest.raises(
        onnxq.CalibrationError, match=r"the model refuses every sample that it was given \(7\)"
    ):
        quantized("d.npz", skip_bad_samples=True)
    assert not STATISTICS.exists()


@pytest.mark.parametrize("skip", [False, True])
def test_synthetic_inputs_that_the_model_refuses(folder, skip):
    text = "g (int64[1,4] x, float[1,4] s) => (float[1,4,3] y) <float[8,6] t, float[6,3] w> {"
    text += "c = Constant <value = int64[1] {30}> ()  z = Add(x, c)  e = Gather(t, z)  y = MatMul(e, w) }"
    save_model(folder / "m.onnx", text)
    with pytest.raises(
        onnxq.CalibrationError, match=r"synthetic inputs do not suit the model, give .* \(--data\)$"
    ):
        quantized(None, skip_bad_samples=skip)


def test_few_bad_samples_are_no_reason_to_doubt(lookup):
    np.savez("d.npz", x=ids(60, bad=[20]))
    result = quantized("d.npz", skip_bad_samples=True)
    assert result.skipped == 1
    assert not any("BAD" in warning for warning in result.warnings)


def test_going_on_where_samples_were_skipped(lookup):
    rows = ids(30, bad=[1, 3, 22])
    data = [{"x": row[None]} for row in rows]
    data[6] = {"x": np.zeros((1, 9), np.int64)}
    options = {"skip_bad_samples": True, "batch_size": 3}
    whole = in_one_piece(data, **options)
    with pytest.raises(KeyboardInterrupt):
        quantized(interrupted_after(18, data), **options)
    assert quantized(data, **options).skipped == 4
    assert outcome() == whole


def test_going_on_without_skipping_what_was_skipped(lookup):
    data = [{"x": row[None]} for row in ids(30, bad=[1])]
    with pytest.raises(KeyboardInterrupt):
        quantized(interrupted_after(18, data), skip_bad_samples=True)
    refused(data, r"where bad samples were skipped \(--skip-bad-samples\)")


def test_skipped_samples_stand_in_the_closing_table(capsys):
    x = np.load("d.npz")["x"]
    x[7] = np.inf
    save_data(Path("d.npz"), x=x)
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--skip-bad-samples"]) == 0
    out, err = capsys.readouterr()
    assert "1 bad sample" in out
    assert err.startswith("warning: skipped: d.npz[7]: input 'x' holds Inf")


def test_comparing_skips_too(lookup, capsys):
    np.savez("d.npz", x=good(ids(20)))
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet"]) == 0
    np.savez("d.npz", x=ids(20, bad=[0, 4]))
    assert commands.main(["compare", "m.onnx", "o.onnx", "--data", "d.npz"]) == 1
    assert "cannot run d.npz[0]" in capsys.readouterr().err
    assert commands.main(["compare", "m.onnx", "o.onnx", "--data", "d.npz", "--skip-bad-samples"]) == 0
    assert "18 samples" in capsys.readouterr().out
    np.savez("d.npz", x=ids(2, bad=[0, 1]))
    assert commands.main(["compare", "m.onnx", "o.onnx", "--data", "d.npz", "--skip-bad-samples"]) == 1
    assert "m.onnx: the model refuses every sample" in capsys.readouterr().err


# --- onnxq.calibrate ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino", "qnn"])
@pytest.mark.parametrize("method", ["minmax", "entropy", "mse"])
def test_its_statistics_serve_every_target_and_method(target, method):
    statistics = calibrate("m.onnx", "d.npz", config())
    assert statistics.samples == COUNT, "none is held out"
    assert statistics.complete
    result = from_table(target=target, method=method)
    assert result.warnings == ()
    assert set(result.plan.observed) <= set(statistics)


def test_the_tensors_are_those_of_all_targets_or_of_the_one_that_is_given():
    everything = set(calibrate("m.onnx", items()))
    unable = ("tensorrt-fp8", "tensorrt-int4")  # few channels, and convolutions, stay in float
    able = [name for name in TARGETS if name not in unable]
    each = {name: set(calibrate("m.onnx", items(), QuantConfig(target=name))) for name in able}
    assert everything == set().union(*each.values())
    assert len({frozenset(names) for names in each.values()}) > 1, "or this test shows nothing"


def test_a_target_that_does_not_take_the_types_adds_nothing():
    with pytest.raises(onnxq.TargetError, match="tensorrt"):
        calibrate("m.onnx", items(), QuantConfig(target="tensorrt", weight="int4"))
    alone = calibrate("m.onnx", items(), QuantConfig(target="onnxruntime", weight="int4"))
    assert set(calibrate("m.onnx", items(), QuantConfig(weight="int4"))) == set(alone)


def test_nothing_to_quantize_for_any_target(folder):
    save_model(folder / "n.onnx", "g (float[N,3] x) => (float[N,3] y) { y = Acos(x) }")
    with pytest.raises(onnxq.ModelError, match=r"nothing to quantize for target onnxruntime, .*tensorrt"):
        calibrate("n.onnx", items())


def test_calibrating_without_data(capsys):
    assert commands.main(["calibrate", "m.onnx", "s.npz"]) == 2
    assert "calibration needs real samples" in capsys.readouterr().err
    with pytest.raises(onnxq.ConfigError, match="needs real samples"):
        onnxq.calibrate("m.onnx")


def test_calibrating_tells_what_it_made_and_what_it_is_for(capsys):
    assert commands.main(["calibrate", "m.onnx", "s.npz", "--data", "d.npz"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (f"{COUNT} samples, {len(Statistics.load(STATISTICS))} tensors", " s ", "--from-table s.npz"):
        assert part in out
    assert commands.main(["calibrate", "m.onnx", "s.npz", "--data", "d.npz", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("victim", ["m.onnx", "d.npz"])
def test_statistics_overwrite_nothing_that_is_needed(victim, capsys):
    before = Path(victim).read_bytes()
    assert commands.main(["calibrate", "m.onnx", victim, "--data", "d.npz"]) == 1
    assert f"would overwrite {victim}" in capsys.readouterr().err
    assert Path(victim).read_bytes() == before


def test_calibrating_goes_on_after_an_interrupt(caplog):
    calibrate("m.onnx", items(), config())
    whole = STATISTICS.read_bytes()
    STATISTICS.unlink()
    with pytest.raises(KeyboardInterrupt):
        calibrate("m.onnx", interrupted_after(9, items()), config())
    with caplog.at_level(logging.WARNING):
        calibrate("m.onnx", items(), config())
    assert "continuing an interrupted calibration" in caplog.text
    assert STATISTICS.read_bytes() == whole


def test_progress_of_what_goes_on_begins_where_it_ended():
    told = []
    interrupt(14)
    kept = Statistics.load(STATISTICS).samples
    quantize_static("m.onnx", "o.onnx", "d.npz", config(), lambda *what: told.append(what))
    steps = [what[1:] for what in told if what[0] == "calibrating"]
    assert steps[0][0] >= kept
    assert steps[-1] == (COUNT, COUNT)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_every_element_is_counted_if_asked(monkeypatch):
    monkeypatch.setattr("calibrators.collect.SELECTION", 8)
    monkeypatch.setattr("calibrators.statistics.batch_summary.RANKS", 8)
    quantized("d.npz")
    selected = Statistics.load(STATISTICS)
    quantized("d.npz", every_element=True)
    every = Statistics.load(STATISTICS)
    assert {name: (t.low, t.high) for name, t in selected.items()} == {
        name: (t.low, t.high) for name, t in every.items()
    }
    assert any(
        not np.array_equal(selected[name].histogram.counts, every[name].histogram.counts) for name in every
    )
