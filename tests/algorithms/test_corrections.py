"""Corrections are tried in their order, and kept only if held-out samples gain by them."""

import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from benches import bench_for, bench_of
from cli import save_data, save_model
from graphs import parse

from onnxq.algorithms import corrections
from onnxq.algorithms.budget import Budget
from onnxq.algorithms.corrections import CORRECTIONS, Effect, correct
from onnxq.cli import commands
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.graph.passes import simplify
from onnxq.pipelines.sensitivity import rank
from onnxq.pipelines.static import quantize_static


@dataclass(frozen=True)
class Stand:
    """In for a draft: what was done to it, its error, and how that is shared by the batches."""

    done: tuple[str, ...]
    noise: float
    each: tuple[float, ...] = ()
    samples: int = 4


class Bench:
    """In for a workbench."""

    def __init__(self, fitted=None, budget=None):
        self.evaluated = []
        self.budget = budget or Budget()
        self.fit = ["a batch"]
        self._fitted = fitted or {}

    def evaluate(self, draft):
        self.evaluated.append(draft.done)
        return draft

    def fitted(self, draft):
        return self._fitted[draft.done]


def times(name, factor):
    """A correction that multiplies the error."""
    return lambda draft, context: Stand((*draft.done, name), draft.noise * factor)


FAKES = {
    "good": times("good", 0.5),
    "bad": times("bad", 3.0),
    "idle": lambda draft, context: None,
    "equal": times("equal", 1.0),
    "lost": times("lost", math.nan),
    "better": times("better", 0.1),
}


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(corrections, "CORRECTIONS", FAKES)


def test_what_does_harm_or_no_good_is_dropped(fakes):
    context = Bench()
    draft, effects = correct(Stand((), 1.0), FAKES, context)
    assert draft == Stand(("good", "better"), 0.05)
    assert [v.name for v in effects] == list(FAKES)
    assert {v.name for v in effects if v.kept} == {"good", "better"}
    assert [v.before for v in effects] == [1.0, *[0.5] * 5]
    assert {done for done in context.evaluated if done} == {("good",)} | {
        ("good", name) for name in ("bad", "equal", "lost", "better")
    }


def test_one_that_fails_is_left_out_with_a_warning(monkeypatch, caplog):
    def broken(draft, context):
        raise IndexError("list index out of range")

    monkeypatch.setattr(corrections, "CORRECTIONS", {**FAKES, "bad": broken})
    draft, effects = correct(Stand((), 1.0), FAKES, Bench())
    assert draft.done == ("good", "better")
    assert [(v.kept, v.outcome) for v in effects if v.name == "bad"] == [(False, "left out: it failed")]
    assert "correction bad is left out: it failed (IndexError: list index out of range)" in caplog.text


class Clock:
    """Each correction takes some seconds of it."""

    now = 0.0

    def __call__(self):
        return self.now

    def taking(self, seconds, correction):
        def slow(draft, context):
            self.now += seconds
            return correction(draft, context)

        return slow


def test_what_would_take_too_long_is_left_out_and_told(monkeypatch):
    clock = Clock()
    names = {
        "first": clock.taking(4.0, times("first", 0.5)),
        "long": times("long", 0.1),
        "last": clock.taking(2.0, times("last", 0.5)),
        "late": times("late", 0.5),
        "free": times("free", 0.5),
    }
    monkeypatch.setattr(corrections, "CORRECTIONS", names)
    passes = {"first": 10, "long": 13, "last": 12, "late": 9}
    monkeypatch.setattr(corrections, "PASSES", {k: lambda draft, n=n: n for k, n in passes.items()})
    budget = Budget(10.0, batch_seconds=0.5, clock=clock)
    draft, effects = correct(Stand((), 1.0), names, Bench(budget=budget))
    assert draft.done == ("first", "last", "free")
    told = {effect.name: effect.outcome for effect in effects if effect.after is None}
    assert told == {
        "long": "left out: would take about 6 s, 6 of 10 s are left; see --time-limit",
        "late": "left out: would take about 4 s, 4 of 10 s are left; see --time-limit",
    }


def test_with_little_time_a_correction_is_fitted_on_fewer_batches(monkeypatch):
    draft, context = bench_for(count=40)
    seen = []

    def spying(draft, context):
        seen.append([batch.name for batch in context.fit])
        return context.recalibrate(draft.reference)

    monkeypatch.setattr(corrections, "CORRECTIONS", {"try": spying})
    monkeypatch.setattr(corrections, "PASSES", {"try": lambda draft: 2})
    told = []
    for seconds in (80.0, 79.0, 21.0, 19.0):
        budget = Budget(seconds, batch_seconds=1.0, clock=lambda: 0.0)
        told.append(correct(draft, ["try"], replace(context, budget=budget))[1][0].outcome)
    assert [len(names) for names in seen] == [40, 20, 10]
    assert seen[2] == [f"sample {4 * n}" for n in range(10)]
    assert "fitted on" not in told[0]
    assert told[2].endswith("; fitted on 10 batches only, see --time-limit")
    assert told[3] == "left out: would take about 20 s, 19 of 19 s are left; see --time-limit"


def test_the_order_is_not_that_of_the_names(fakes):
    draft, effects = correct(Stand((), 1.0), ["better", "bad", "good"], Bench())
    assert [v.name for v in effects] == ["good", "bad", "better"]
    assert draft.done == ("good", "better")


def stopped_by(other, name, factor):
    """A correction that can do nothing after another one."""
    return lambda draft, context: None if other in draft.done else times(name, factor)(draft, context)


ORDERS = {
    "the first stops the second": (times("one", 0.5), stopped_by("one", "two", 0.1), ("two", "one")),
    "the second stops the first": (stopped_by("two", "one", 0.5), times("two", 0.1), ("one", "two")),
    "each stops the other": (stopped_by("two", "one", 0.5), stopped_by("one", "two", 0.1), ("two",)),
    "the first of equals": (stopped_by("two", "one", 0.5), stopped_by("one", "two", 0.5), ("one",)),
    "harm at first": (times("one", 2.0), times("two", 0.5), ("two",)),
    "none stops another": (times("one", 0.5), times("two", 0.5), ("one", "two")),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_the_best_order_is_kept(kind, monkeypatch):
    one, two, kept = ORDERS[kind]
    tried = {"zero": times("zero", 0.9), "one": one, "two": two, "last": times("last", 0.5)}
    monkeypatch.setattr(corrections, "CORRECTIONS", tried)
    monkeypatch.setattr(corrections, "ANY_ORDER", ("one", "two"))
    context = Bench()
    draft, effects = correct(Stand((), 1.0), tried, context)
    assert draft.done == ("zero", *kept, "last")
    assert [v.name for v in effects if v.kept] == list(draft.done)
    assert sorted(v.name for v in effects) == sorted(tried)
    assert len(context.evaluated) == len(set(context.evaluated)), "each chain is evaluated once"


@pytest.mark.parametrize(("name", "kept"), [("rounding", ("rounding",)), ("equalize", ("equalize", "bias"))])
def test_biases_that_a_correction_fitted_itself_are_kept_if_they_are_better(name, kept, monkeypatch):
    monkeypatch.setattr(corrections, "CORRECTIONS", {name: times(name, 0.1)})
    monkeypatch.setattr(corrections, "correct_biases", times("bias", 2.0))
    monkeypatch.setattr(corrections, "_stages", lambda names: [(name,)])
    draft, _ = correct(Stand((), 1.0), [name, "bias"], Bench())
    assert draft.done == kept


UNLIKE = """g (float[N,4,6,6] x) => (float[N,3] y)
<float[8,4,3,3] w1, float[8] b1, float[8,4,3,3] w2, float[8] b2, float big, float[8,16,3,3] w3, float[8] b3,
 float[8,8,3,3] w4, float[8] b4, float[8,3] v> {
  a = Conv(x, w1, b1) r = Relu(a) l = Mul(r, big)  c = Conv(x, w2, b2) q = Relu(c) j = Concat<axis=1>(l, q)
  d = Conv<pads=[1,1,1,1]>(j, w3, b3) e = Relu(d) f = Conv<pads=[1,1,1,1]>(e, w4, b4) t = Relu(f)
  p = GlobalAveragePool(t) u = Flatten(p) y = Gemm(u, v)
}"""


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_all_together_are_no_worse_than_one_alone(target):
    rng = np.random.default_rng(2)
    w3 = rng.normal(size=(8, 16, 3, 3)) * np.where(np.arange(16) < 8, 1 / 16, 1.0).reshape(16, 1, 1)
    model = simplify(parse(UNLIKE, big=16.0, w3=w3))
    draft, context = bench_of(model, (1, 4, 6, 6), target=target)
    alone = [context.error(correct(draft, [name], context)[0]) for name in ("center", "equalize")]
    assert context.error(correct(draft, ["bias", "center", "equalize"], context)[0]) < 1.2 * min(alone)


def test_nothing_to_do(fakes):
    before = Stand((), 1.0)
    draft, (effect,) = correct(before, ["idle"], Bench())
    assert draft is before
    assert (effect.after, effect.kept, effect.gain) == (None, False, 0.0)
    assert correct(before, [], Bench()) == (before, ())


CHANGES = {
    "lost by chance": ((1.0, 3.0, 2.0, 2.0), (2.0, 2.0, 2.5, 2.0), None),
    "gained by chance": ((2.0, 2.0, 2.5, 2.0), (1.0, 3.0, 2.0, 2.0), None),
    "lost for sure": ((2.0, 2.0, 2.0, 2.0), (2.1, 2.2, 2.1, 2.2), False),
    "gained for sure": ((2.1, 2.2, 2.1, 2.2), (2.0, 2.0, 2.0, 2.0), True),
    "no change": ((2.0, 1.0), (1.0, 2.0), False),
    "one batch worse": ((8.0,), (8.1,), False),
    "one batch better": ((8.1,), (8.0,), True),
    "infinite": ((1.0, 2.0), (1.0, math.inf), False),
    "not a number": ((1.0, 2.0), (1.0, math.nan), False),
    "nothing known": ((), (), False),
}
"""Noise of the batches before and after, and whether it helped; None: that may be chance."""


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_samples_fitted_on_decide_only_what_may_be_chance(kind, factor, monkeypatch):
    before, after, helped = CHANGES[kind]
    start = Stand((), sum(before) or 8.0, before)
    tried = Stand(("try",), sum(after) or 8.5, after)
    monkeypatch.setattr(corrections, "CORRECTIONS", {"try": lambda draft, context: tried})
    fitted = {(): Stand((), 8.0, (2.0,) * 4), ("try",): Stand(("try",), 8.0 * factor, (2.0 * factor,) * 4)}
    draft, (effect,) = correct(start, ["try"], Bench(fitted))
    assert effect.kept is (factor < 1 if helped is None else helped)
    assert draft is (tried if effect.kept else start)
    assert effect.fitted_gain == (pytest.approx(-10 * math.log10(factor)) if helped is None else None)


@pytest.mark.parametrize(("fitted", "kept"), [(8.3, True), (8.8, False)])
def test_all_samples_together_decide_what_may_be_chance(fitted, kept, monkeypatch):
    """However small the change: held-out samples gain half a unit here, and those fitted on lose the rest."""
    before, after, _ = CHANGES["gained by chance"]
    start, tried = Stand((), 8.5, before), Stand(("try",), 8.0, after)
    monkeypatch.setattr(corrections, "CORRECTIONS", {"try": lambda draft, context: tried})
    both = {(): Stand((), 8.0, (2.0,) * 4), ("try",): Stand(("try",), fitted, (fitted / 4,) * 4)}
    draft, (effect,) = correct(start, ["try"], Bench(both))
    assert (draft is tried, effect.kept) == (kept, kept)
    assert effect.fitted_gain == pytest.approx(10 * math.log10(8.0 / fitted))


GAINS = [
    (0.1, 0.01, 10.0),
    (0.01, 0.1, -10.0),
    (0.2, 0.2, 0.0),
    (0.1, 0.0, math.inf),
    (0.0, 0.1, -math.inf),
    (0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("before", "after", "gain"), GAINS)
def test_gains_are_in_decibels(before, after, gain):
    assert Effect("x", before, after, 1.0, kept=gain > 0).gain == pytest.approx(gain)


def test_real_ones_leave_no_model_worse():
    draft, context = bench_for(bits=4, count=40, held=16)
    chosen = {"ranges", "rounding", "bias", "full-bias"}
    corrected, effects = correct(draft, chosen, context)
    assert [v.name for v in effects] == [name for name in CORRECTIONS if name in chosen]
    errors = [context.error(draft), *(v.after if v.kept else v.before for v in effects)]
    assert all(v.kept is (v.after < v.before) for v in effects if v.after and v.fitted_gain is None)
    assert context.error(corrected) == pytest.approx(errors[-1])
    assert errors[-1] < 0.7 * errors[0]


# --- through the whole flow -----------------------------------------------------------------------


def samples(count=20):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


QUICK = tuple(name for name in CORRECTIONS if name != "adaround")


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    model = save_model(tmp_path / "m.onnx")
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    results = [
        quantize_static(model, path, samples(), QuantConfig(correct=QUICK, weight="int4", threads=threads))
        for path, threads in zip(paths, (1, 2), strict=True)
    ]
    assert [v.name for v in results[0].corrections] == list(QUICK)
    assert any(v.kept for v in results[0].corrections)
    assert [(v.name, v.after) for v in results[0].corrections] == [
        (v.name, v.after) for v in results[1].corrections
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_time_limit_of_zero_leaves_out_all_but_the_biases(tmp_path):
    model = save_model(tmp_path / "m.onnx")
    result = quantize_static(model, tmp_path / "o.onnx", samples(), QuantConfig(time_limit=0))
    outcomes = {effect.name: effect.outcome for effect in result.corrections}
    assert all("--time-limit" in outcomes[name] for name in ("center", "equalize", "rounding"))
    assert "left out" not in outcomes["bias"]
    assert quantize_static(model, tmp_path / "o.onnx", samples()).corrections[-1].after is not None


def test_too_few_samples_to_hold_any_out_prove_nothing(tmp_path):
    model = save_model(tmp_path / "m.onnx")
    assert quantize_static(model, tmp_path / "o.onnx", samples(3)).corrections == ()


def test_none_tries_none(tmp_path, monkeypatch):
    model, data = save_model(tmp_path / "m.onnx"), save_data(tmp_path / "d.npz")
    monkeypatch.setattr("onnxq.algorithms.corrections.correct", None)
    given = ["quantize", model, tmp_path / "o.onnx", "--data", data, "--quiet", "--correct", "none"]
    assert commands.main([str(one) for one in given]) == 0
    assert quantize_static(model, tmp_path / "p.onnx", data, QuantConfig(correct=("none",))).corrections == ()
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()


def test_unknown_names_are_told_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"correct.*rounding"):
        QuantConfig(correct=("magic",))


def test_a_missing_torch_is_told_before_samples_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model, read = save_model(tmp_path / "m.onnx"), []
    data = (read.append(number) or sample for number, sample in enumerate(samples()))
    with pytest.raises(ConfigError, match=r"onnxq\[torch\]"):
        quantize_static(model, tmp_path / "o.onnx", data, QuantConfig(correct=("bias", "adaround")))
    assert not read
    config = QuantConfig(correct=("adaround",), data=save_data(tmp_path / "d.npz"))
    with pytest.raises(ConfigError, match=r"onnxq\[torch\]"):
        rank(model, config)
