"""One pass over the data, whatever the model and the batches look like."""

from __future__ import annotations

import logging
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from calibrators import collect as collecting
from calibrators.blocked_layout import open_unordered
from calibrators.collect import Collector, run_batch
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.fingerprint import fingerprint
from calibrators.session import open_session
from calibrators.statistics import Statistics, TensorStatistics
from calibrators.statistics.tensor import Extreme

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,M] x, int64[N] ids) => (float[N,M] y, float[A,B] z)
<float[4,1] table = {1, 2, 3, 4}>
{
    rows = Gather <axis = 0> (table, ids)
    h = Mul(x, rows)
    y = Relu(h)
    z = Exp(y)
}
"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def collect(model, tensors, batches, **options) -> Statistics:
    """Of batches given as (name, feeds), whose first array counts the samples."""
    return collecting.collect(model, tensors, map(as_sample, batches), **options)


def as_sample(batch) -> Sample:
    name, arrays = batch
    return Sample(name, arrays, next((a.shape[0] for a in arrays.values() if a.ndim), 1))


def make(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>\n' + text))


def feeds(n: int, m: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((n, m)).astype(np.float32), "ids": rng.integers(0, 4, n)}


def test_every_tensor_over_every_batch(model):
    data = [(f"s{i}", feeds(n, m, i)) for i, (n, m) in enumerate([(1, 5), (3, 2), (1, 1), (2, 700)])]
    done: list[int] = []
    found = collect(model, ["h", "y", "rows", "x", "ids", "z"], data, on_batch=done.append)
    assert done == [1, 4, 5, 7]
    assert found.samples == 7
    session = open_session(model, outputs=["h", "rows", "x", "ids"])
    for name, tensor in found.items():
        expected = TensorStatistics()
        for sample, batch in data:
            array = run_batch(session, [name], Sample(sample, batch))[0]
            expected.update(
                array, len(batch["ids"]), name_of=Sample(sample, batch, len(batch["ids"])).name_of
            )
        assert (tensor.low, tensor.high) == (expected.low, expected.high)
        assert tensor.count == expected.count
        assert tensor.samples == 7
        assert tensor.trail == expected.trail
        assert (tensor.lowest, tensor.highest) == (expected.lowest, expected.highest)
        np.testing.assert_array_equal(tensor.histogram.counts, expected.histogram.counts)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("every_element", [True, False])
def test_threads_and_batching_change_nothing(model, threads, every_element, tmp_path):
    options = {"channels": {"y": 1}, "every_element": every_element}
    whole = feeds(12, 30_000, 0)

    def saved(size: int, path, **more) -> bytes:
        batches = (
            Sample(
                "batch",
                {name: array[i : i + size] for name, array in whole.items()},
                len(whole["ids"][i : i + size]),
                members=tuple(f"s{n}" for n in range(i, i + size)),
            )
            for i in range(0, 12, size)
        )
        collecting.collect(model, ["h", "y", "z"], batches, **options, **more).save(path)
        return path.read_bytes()

    expected = saved(12, tmp_path / "whole", threads=1)
    for size in (1, 5):
        assert saved(size, tmp_path / "parts", threads=threads) == expected


def test_channel_means(model):
    batch = feeds(4, 6, 0)
    found = collect(model, ["h", "x"], [("s", batch)], channels={"x": 1})
    assert found["h"].channels is None
    assert found["x"].channels is not None
    np.testing.assert_allclose(found["x"].channels.value, batch["x"].mean(axis=0), rtol=1e-6)


def test_channels_along_an_axis_that_is_not_there(model):
    with pytest.raises(CalibrationError, match="x cannot be observed: no axis 2"):
        collect(model, ["x"], [("s", feeds(1, 2, 0))], channels={"x": 2})


def test_samples_that_set_the_range_are_named(model):
    batches = [("quiet", feeds(1, 5, 0)), ("loud", feeds(1, 5, 1)), ("calm", feeds(1, 5, 2))]
    batches[1][1]["x"][0, 3] = 99
    found = collect(model, ["x"], batches)["x"]
    assert found.highest == Extreme(99, 1, "loud")


def test_a_sample_of_a_batch_is_named_itself(model):
    batch = feeds(3, 5, 0)
    batch["x"][1, 2] = 99
    joined = Sample("a to c", batch, 3, members=("a", "b", "c"))
    found = collecting.collect(model, ["x", "h"], [joined])
    assert found["x"].highest == Extreme(99, 1, "b")
    tensor = TensorStatistics()  # axis 0 does not count the samples: it may have been any of them
    tensor.update(np.array([1.0, 5.0]), 3, name_of=joined.name_of)
    assert tensor.highest == Extreme(5, 0, "a to c")


def test_an_interrupted_run_goes_on_where_it_stopped(model, tmp_path):
    data = [as_sample((f"s{i}", feeds(2, 50, i))) for i in range(9)]
    whole = collecting.collect(model, ["h", "y"], data)

    def interrupted():
        yield from data[:4]
        raise KeyboardInterrupt

    with Collector(model, ["h", "y"], threads=2) as collector:
        with suppress(KeyboardInterrupt):
            for sample in interrupted():
                collector.observe(sample)
        collector.finish().save(tmp_path / "part", complete=False)
    part = Statistics.load(tmp_path / "part")
    assert (part.samples, part.span, part.complete) == (8, (0, 8), False)
    with Collector(model, ["h", "y"], resume=part) as collector:
        for sample in data[4:]:
            collector.observe(sample)
        collector.finish().save(tmp_path / "resumed", complete=True)
    whole.save(tmp_path / "whole")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_finish_after_the_block(model, count, threads):
    data = [as_sample((f"s{i}", feeds(3, 400, i))) for i in range(count)]
    with Collector(model, ["h", "y"], threads=threads, channels={"h": 1}) as collector:
        for sample in data:
            collector.observe(sample)
    found, whole = collector.finish(), collecting.collect(model, ["h", "y"], data)
    assert found.samples == whole.samples == 3 * count
    assert (found["y"].low, found["y"].high) == (whole["y"].low, whole["y"].high)
    assert found["h"].channels.value.shape == (400,)


def test_finish_after_an_interrupted_block(model):
    """What has begun counts, the rest is discarded; nothing hangs or is told as cancelled."""
    with suppress(KeyboardInterrupt), Collector(model, ["h"], threads=3) as collector:
        for i in range(20):
            collector.observe(as_sample((f"s{i}", feeds(2, 500, i))))
        raise KeyboardInterrupt
    found = collector.finish()
    assert found.span == (0, found.samples)
    assert 2 <= found.samples <= 40


def test_an_interrupt_between_two_steps_loses_and_doubles_nothing(model):
    """Small batches wait to be counted together; an interrupt may come before they are crossed off."""
    data = [as_sample((f"s{i}", feeds(1, 4, i))) for i in range(9)]
    with Collector(model, ["h"], threads=2) as collector:
        for sample in data:
            collector.observe(sample)
        waiting = collector._small
        assert len(waiting) > 1
        collector._submit()
        collector._small = waiting
    found, whole = collector.finish(), collecting.collect(model, ["h"], data)
    assert (found.samples, found.span) == (whole.samples, whole.span) == (9, (0, 9))
    np.testing.assert_array_equal(found["h"].histogram.counts, whole["h"].histogram.counts)


def test_batches_after_the_end_are_refused(model):
    sample = as_sample(("last", feeds(2, 3, 0)))
    with Collector(model, ["h"]) as collector:
        collector.observe(sample)
    with pytest.raises(CalibrationError, match="last comes too late: the collector was closed"):
        collector.observe(sample)
    assert collector.finish().samples == 2


def test_nothing_is_left_to_go_on_with(model):
    part = collect(model, ["h"], [("s", feeds(1, 2, 0))])
    with Collector(model, ["h"], resume=part) as collector:
        assert collector.finish().samples == 1


def test_refused_batches_can_be_passed_over(model):
    bad = {"x": np.ones((2, 3), np.float32), "ids": np.array([9, 9])}
    half = {"x": np.ones((2, 3), np.float32), "ids": np.array([9, 1])}
    batches = [("good", feeds(1, 3, 0)), ("bad", bad), ("fine", feeds(2, 3, 1)), ("half", half)]
    refused: list[str] = []
    found = collect(model, ["h"], batches, on_bad=lambda error, n: refused.append(f"{n} {error}"))
    assert [text.split(":")[0] for text in refused] == [
        "1 the model cannot run bad, sample 0",
        "1 the model cannot run bad, sample 1",
        "1 the model cannot run half, sample 0",
    ]
    assert (found.samples, found.span, found["h"].samples) == (4, (0, 7), 4)


def test_if_the_model_refuses_everything_that_is_said(model):
    bad = {"x": np.ones((2, 3), np.float32), "ids": np.array([9, 9])}
    with pytest.raises(CalibrationError, match=r"refuses every sample that it was given \(4\)"):
        collect(model, ["h"], [("a", bad), ("b", bad)], on_bad=lambda *_: None)


def test_the_first_batch_that_is_taken_shows_how_many_may_run(model, monkeypatch):
    monkeypatch.setattr(collecting, "MOST_BYTES", 2000)
    opened: list[int] = []
    monkeypatch.setattr(collecting, "open_unordered", lambda *a: opened.append(a[-1]) or open_unordered(*a))
    bad = {"x": np.ones((1, 3), np.float32), "ids": np.array([9])}
    data = [("bad", bad), ("worse", bad), *((f"s{i}", feeds(1, 100, i)) for i in range(5))]
    assert collect(model, ["h"], data, threads=4, on_bad=lambda *_: None).samples == 5
    assert opened == [1, 2]


def test_large_tensors_are_not_many_at_a_time(model, monkeypatch):
    monkeypatch.setattr(collecting, "MOST_BYTES", 2000)
    monkeypatch.setattr(collecting, "MOST_COUNTED", 1)
    opened: list[int] = []
    monkeypatch.setattr(collecting, "open_unordered", lambda *a: opened.append(a[-1]) or open_unordered(*a))
    running: list[int] = []
    most: list[int] = []

    def run(*arguments):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        found = run_batch(*arguments)
        running.pop()
        return found

    monkeypatch.setattr(collecting, "run_batch", run)
    data = [(f"s{i}", feeds(1, 100, i)) for i in range(8)]
    one = collect(model, ["h"], data, threads=4)
    assert opened == [1, 2]  # 808 bytes a batch with its inputs: two at a time, two threads each
    assert max(most) == 2
    np.testing.assert_array_equal(
        one["h"].histogram.counts, collect(model, ["h"], data, threads=1)["h"].histogram.counts
    )


def test_the_fingerprint_is_that_of_nodes_and_weights(model):
    assert collect(model, ["h"], [("s", feeds(1, 2, 0))]).fingerprint == fingerprint(model)
    assert fingerprint(ir.from_proto(onnx.parser.parse_model(TEXT))) == fingerprint(model)
    for changed in (
        TEXT.replace("3, 4}", "3, 5}"),
        TEXT.replace("Exp", "Abs"),
        TEXT.replace("axis = 0", "axis = -2"),
    ):
        assert fingerprint(ir.from_proto(onnx.parser.parse_model(changed))) != fingerprint(model)


def test_a_path_and_repeated_names(model, tmp_path):
    ir.save(model, tmp_path / "m.onnx")
    assert list(collect(tmp_path / "m.onnx", ["y", "h", "y"], [("s", feeds(1, 2, 0))])) == ["y", "h"]


def test_buffers_may_be_reused_by_the_source(model):
    def reused():
        batch = feeds(1, 3, 0)
        for value in (1.0, 5.0, 3.0):
            batch["x"][:] = value
            yield "s", batch

    found = collect(model, ["x", "h"], reused())
    assert (found["x"].low, found["x"].high) == (1, 5)
    assert found["x"].count == 9


def test_branches_and_loops():
    model = make("""
    g (float[N] x, int64 n) => (float[N] y)
    {
        zero = Constant <value = float {0}> ()
        sum = ReduceSum <keepdims = 0> (x)
        c = Greater(sum, zero)
        h = Abs(x)
        a = If (c) <
            then_branch = t () => (float[N] p) { p = Mul(h, h) },
            else_branch = e () => (float[N] q) { q = Neg(h) }
        >
        go = Cast <to = 9> (n)
        y = Loop (n, go, a) <
            body = b (int64 i, bool k, float[N] v) => (bool k2, float[N] v2)
                { k2 = Identity(k)  v2 = Add(v, h) }
        >
    }
    """)
    data = [("up", {"x": np.array([1, 2], np.float32), "n": np.array(2)})]
    data += [("down", {"x": np.array([-3, 1], np.float32), "n": np.array(1)})]
    found = collect(model, ["h", "a", "y", "c"], data)
    assert (found["h"].low, found["h"].high) == (1, 3)
    assert (found["a"].low, found["a"].high) == (-3, 4)
    assert (found["y"].low, found["y"].high) == (0, 8)
    assert (found["c"].low, found["c"].high, found["c"].count) == (0, 1, 4)


@pytest.mark.parametrize(("kind", "text"), [(np.float16, "float16"), (np.float64, "double")])
def test_other_float_types(kind, text):
    model = make(f"g ({text}[N] x) => ({text}[N] y) {{ h = Neg(x)  y = Abs(h) }}")
    found = collect(model, ["h"], [("s", {"x": np.array([1, -2], kind)})])
    assert (found["h"].low, found["h"].high) == (-1, 2)


def test_scalars_count_as_one_sample():
    model = make("g (float x) => (float y) { y = Neg(x) }")
    found = collect(model, ["y"], [("s", {"x": np.array(2, np.float32)})] * 2)
    assert (found.samples, found["y"].low) == (2, -2)


def test_empty_tensors(caplog):
    model = make("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    batches = [("s", {"x": np.ones((1, 2), np.float32)}), ("none", {"x": np.empty((0, 2), np.float32)})]
    found = collect(model, ["y"], batches)
    assert (found.samples, found["y"].count) == (1, 2)
    assert not caplog.records


def test_nan_and_infinity_are_warned_of_with_tensor_and_sample(caplog):
    model = make("g (float[N] x) => (float[N] y) { h = Log(x)  y = Neg(h) }")
    batches = [
        ("good.npy", {"x": np.ones(1, np.float32)}),
        ("bad.npy", {"x": np.array([0, -1, 1], np.float32)}),
        ("worse.npy", {"x": np.array([0], np.float32)}),
    ]
    with caplog.at_level(logging.WARNING):
        found = collect(model, ["h"], batches)
    assert found["h"].nonfinite == 3
    assert found["h"].count == 2
    first, total = [record.getMessage() for record in caplog.records]
    assert "bad.npy: 2 of 3 values of tensor h" in first
    assert "tensor h held 3 NaN or infinite values in total" in total


def test_a_tensor_without_any_finite_value_is_named(caplog):
    model = make("g (float[N] x) => (float[N] y) { h = Sqrt(x)  y = Abs(x) }")
    found = collect(model, ["h", "y"], [("s", {"x": np.array([-1], np.float32)})])
    assert found.unseen == ("h",)
    assert "tensor h never held a finite value" in caplog.text


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.ones((2, 3), np.float32), "ids": np.zeros(3, np.int64)}, "broadcast"),
        ({"x": np.ones((2, 3)), "ids": np.zeros(2, np.int64)}, r"tensor\(double\)"),
        ({"x": np.ones((2, 3), np.float32)}, "ids"),
        ({"x": np.ones((2, 3), np.float32), "ids": np.zeros(2, np.int64), "more": np.ones(1)}, "more"),
        ({"x": np.ones((2, 3), np.float32), "ids": np.array([9, 9])}, "indices element out of data bounds"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(model, batch, message, capfd):
    with pytest.raises(CalibrationError, match=f"(?s)cannot run cat.npz.*{message}"):
        collect(model, ["h"], [("dog.npz", feeds(1, 2, 0)), ("cat.npz", batch)])
    assert capfd.readouterr().err == ""


def test_no_batches(model):
    with pytest.raises(CalibrationError, match="no calibration data"):
        collect(model, ["h"], [])


def test_an_unknown_tensor(model):
    with pytest.raises(CalibrationError, match="no tensor called nope"):
        collect(model, ["h", "nope"], [("s", feeds(1, 1, 0))])


def test_no_tensors(model):
    assert collect(model, [], [("s", feeds(2, 1, 0))]).samples == 2


def test_what_is_no_number_tensor_is_named():
    model = make(
        "g (float[N] x) => (float[N] y) { s = SequenceConstruct(x)  y = SequenceAt(s, i)  }".replace(
            "SequenceAt(s, i)", "ConcatFromSequence <axis = 0> (s)"
        )
    )
    with pytest.raises(CalibrationError, match="s cannot be observed: it is not a tensor but a list"):
        collect(model, ["s"], [("s", {"x": np.ones(1, np.float32)})])
    model = make("g (float[N] x) => (string[N] y) { y = Cast <to = 8> (x) }")
    with pytest.raises(CalibrationError, match="y cannot be observed: expected real numbers"):
        collect(model, ["y"], [("s", {"x": np.ones(1, np.float32)})])


def test_an_error_of_the_source_comes_through(model):
    def broken():
        yield "s", feeds(1, 1, 0)
        raise CalibrationError("cat.jpg is no picture")

    with pytest.raises(CalibrationError, match=r"cat\.jpg"):
        collect(model, ["h"], broken())


def test_memory_does_not_grow_with_the_samples(model):
    def peak(samples: int) -> int:
        tracemalloc.start()
        collect(model, ["h", "y", "z"], ((f"s{i}", feeds(1, 50_000, i)) for i in range(samples)), threads=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    few, many = peak(20), peak(120)
    assert many < 2 * few  # kept arrays would be 6 times as much


def test_ranges_can_be_taken_from_a_file(model, tmp_path):
    collect(model, ["h"], [("s", feeds(2, 9, 0))]).save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz")["h"].count == 18
