"""Goals in mode weight-only: more bits, or fewer, for the groups of products where they count most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import op_counts, parse

import onnxq
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError
from onnxq.core.goal import parse_goal
from onnxq.graph.files import load
from onnxq.pipelines.weight_only.choice.bit_allocation import FLOAT, allocate_bits, with_bits
from onnxq.pipelines.weight_only.choice.goal_search import allowed
from onnxq.pipelines.weight_only.choice.group_costs import groups_of, measured_costs
from onnxq.pipelines.weight_only.pipeline import _prepare
from onnxq.pipelines.weight_only.streaming import WeightWork
from onnxq.verify.accuracy import Quality
from onnxq.verify.outputs.next_token import NextToken
from onnxq.verify.outputs.tally import OutputQuality

MODEL = """g (int64[N,M] i) => (float[N,M,60] y)
<float[60,64] t, float[64,192] u, float[64,192] v, float[192,64] w, float[64,160] a, float[160,60] h>
{ e = Gather(t, i)
  b = MatMul(e, u)  c = MatMul(e, v)  s = Sigmoid(b)  d = Mul(s, c)  o = MatMul(d, w)
  r = Add(o, e)  f = MatMul(r, a)  g1 = Tanh(f)  y = MatMul(g1, h) }"""


def save(folder: Path) -> Path:
    model = parse(MODEL)
    for name, value in model.graph.initializers.items():
        if name != "t":
            array = value.const_value.numpy()
            value.const_value = ir.tensor(array / np.float32(np.sqrt(len(array))), name=name)
    ir.save(model, folder / "float.onnx")
    return folder / "float.onnx"


def data(count: int = 10) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"i": rng.integers(0, 60, (1, 24))} for _ in range(count)]


def quantized(folder: Path, goal: str | None, **options: object) -> onnxq.QuantResult:
    config = QuantConfig(mode="weight-only", goal=goal, weight="uint4", **options)
    return onnxq.quantize_weights(save(folder), folder / "q.onnx", config, data=data())


def kl(result: onnxq.QuantResult) -> float:
    assert result.quality is not None
    assert result.quality.next_token is not None
    return result.quality.next_token.kl


def work_of(folder: Path) -> WeightWork:
    return _prepare(save(folder), QuantConfig(mode="weight-only"))


def test_a_limit_of_the_divergence_is_kept_with_fewer_bytes_than_all_in_eight_bits(tmp_path: Path) -> None:
    plain, wide = quantized(tmp_path, None), quantized(tmp_path, "kl<=1e-9")
    limit = 0.3 * kl(plain)
    result = quantized(tmp_path, f"kl<={limit}")
    assert kl(result) <= limit
    assert plain.int8_bytes < result.int8_bytes < wide.int8_bytes
    assert any("chosen" in row for row in result.mix)
    bits = {n.attributes["bits"].as_int() for n in load(tmp_path / "q.onnx").graph if "bits" in n.attributes}
    assert bits == {4, 8}


def test_nothing_changes_where_the_goal_holds_already(tmp_path: Path) -> None:
    quantized(tmp_path, None)
    plain = (tmp_path / "q.onnx").read_bytes()
    result = quantized(tmp_path, "kl<=10")
    assert (tmp_path / "q.onnx").read_bytes() == plain
    assert len(result.mix) == 2


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
@pytest.mark.parametrize("goal", ["sqnr>=30", "agreement>=0.99"])
def test_other_goals(goal: str, form: str, tmp_path: Path) -> None:
    result = quantized(tmp_path, goal, format=form)
    assert result.quality is not None
    assert allowed(parse_goal(goal), result.quality) >= 1


@pytest.mark.parametrize("share", [0.85, 1.2])
def test_a_limit_of_the_size(share: float, tmp_path: Path) -> None:
    plain = quantized(tmp_path, None)
    limit = int(share * plain.int8_bytes)
    result = quantized(tmp_path, f"size<={limit}B")
    assert 0.8 * limit < result.int8_bytes <= limit
    assert (kl(result) < kl(plain)) == (share > 1)


def test_a_size_without_data(tmp_path: Path) -> None:
    config = QuantConfig(mode="weight-only", goal="size<=55kB", weight="uint4")
    result = onnxq.quantize_weights(save(tmp_path), tmp_path / "q.onnx", config)
    assert result.int8_bytes <= 55_000


def test_what_cannot_be_reached_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be reached"):
        quantized(tmp_path, "size<=1kB")
    assert not (tmp_path / "q.onnx").exists()


def test_goals_about_accuracy_need_data(tmp_path: Path) -> None:
    config = QuantConfig(mode="weight-only", goal="kl<=0.1")
    with pytest.raises(ConfigError, match="--data"):
        onnxq.quantize_weights(save(tmp_path), tmp_path / "q.onnx", config)


def test_costs_of_groups_add_up(tmp_path: Path) -> None:
    from calibrators.data.samples import Sample

    work = work_of(tmp_path)
    groups = groups_of(work.products)
    assert [len(group) for group in groups] == [2, 1, 1, 1]

    def worse(product: object) -> np.ndarray:
        exact = product.operand.tensor.numpy().T  # type: ignore[attr-defined]
        noise = np.random.default_rng(product.sizes[0]).standard_normal(exact.shape)  # type: ignore[attr-defined]
        return np.asarray(exact + 0.01 * noise, np.float32)

    batches = [Sample("0", {"i": np.arange(48).reshape(2, 24)}, 2)]
    costs = measured_costs(work.model, groups, worse, batches, lambda *_: None)
    (together,) = measured_costs(work.model, [work.products], worse, batches, lambda *_: None)
    assert min(costs) > 0
    assert together == pytest.approx(sum(costs), rel=0.6)


def test_the_ladder_takes_the_steps_that_gain_most_for_each_byte(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    groups = groups_of(work.products)
    allocation = allocate_bits(groups, [1, 1, 8, 1], work.scheme, [4, 8, FLOAT])
    assert len(allocation.steps) == 8
    assert allocation.steps[0].group == 2
    assert allocation.costs[0] == pytest.approx(11)
    assert allocation.costs[-1] == pytest.approx(0, abs=1e-9)
    assert all(one >= other for one, other in zip(allocation.costs, allocation.costs[1:], strict=False))
    assert set(allocation.bits(0).values()) == {4}
    assert set(allocation.bits(8).values()) == {FLOAT}
    mixed = with_bits(work, allocation.bits(1))
    widths = {mixed.scheme_of(product).dtype.bitwidth for product in groups[2]}
    assert widths == {8}
    assert not with_bits(work, allocation.bits(8)).products


def test_how_much_costs_may_grow() -> None:
    def quality(**given: float) -> Quality:
        token = NextToken(**given)
        return Quality({"y": OutputQuality(20.0, 0.9, next_token=token)}, 1)

    found = quality(kl=0.2, perplexity=12.0, float_perplexity=10.0)
    assert allowed(parse_goal("kl<=0.1"), found) == pytest.approx(0.5)
    assert allowed(parse_goal("perplexity<=1.1x"), found) == pytest.approx(0.5)
    assert allowed(parse_goal("perplexity<=12"), found) >= 1
    assert allowed(parse_goal("sqnr>=30"), found) == pytest.approx(0.1)
    assert allowed(parse_goal("agreement>=0.95"), found) == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="cannot be measured"):
        allowed(parse_goal("perplexity<=2"), quality(kl=0.2))


def test_float_matrices_are_told(tmp_path: Path) -> None:
    result = quantized(tmp_path, "kl<=1e-9")
    assert any("sake of the goal" in node.reason for node in result.plan.float_nodes.values())
    assert "MatMul" in op_counts(load(tmp_path / "q.onnx"))
