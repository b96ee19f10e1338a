"""`--autotune` and the last look at the speed, in the flow; what is measured is made up."""

import numpy as np
import onnx
import pytest
from cli import save_data, save_model

from onnxq.algorithms.autotune import apply
from onnxq.algorithms.autotune.tuner import Candidate, Tuning
from onnxq.cli.commands import main
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.pipelines import acceptance
from onnxq.pipelines.static import quantize_static
from onnxq.targets import TARGETS

WHY = "slower in integers on this machine: 2.000 ms instead of 1.000 ms"


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "m.onnx")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "o.onnx"


def data(count=20):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def tuning(names, chosen=True):
    best = Candidate(frozenset(names), *((1.5, 1.4, 1.3) if chosen else (0.8, 0.7, 0.6)))
    return Tuning(dict.fromkeys(names, WHY), (best,), best if chosen else None, 1)


@pytest.fixture
def float_nodes(monkeypatch):
    """What the tuner finds: operator types that are to stay float, and whether any model is faster."""
    wanted = {"types": {"MatMul"}, "chosen": True}

    def tune(draft, sample, context, effort):
        wanted.update(sample=sample, effort=effort)
        names = [name for name, kind in draft.plan.integer_nodes.items() if kind in wanted["types"]]
        return tuning(names, wanted["chosen"])

    monkeypatch.setattr(apply, "tune", tune)
    return wanted


@pytest.fixture
def times(monkeypatch):
    """(float, int8) in seconds, as the last look sees them."""
    seconds = [0.002, 0.001]
    monkeypatch.setattr(acceptance, "time_interleaved", lambda *_, **__: np.tile(seconds, (20, 1)))
    return seconds


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("samples", [data(), None], ids=["data", "synthetic"])
def test_what_is_slower_in_integers_stays_float(model, output, float_nodes, samples):
    result = quantize_static(model, output, samples, QuantConfig(autotune="full"))
    (name,) = result.tuning.floats
    assert result.plan.float_nodes[name].reason == WHY
    assert "Conv" in result.plan.integer_nodes.values()
    assert "MatMul" not in result.plan.integer_nodes.values()
    assert float_nodes["sample"].feeds["x"].shape[1:] == (3, 8, 8)


def test_the_batch_is_that_of_the_data(model, output, float_nodes):
    quantize_static(model, output, data(), QuantConfig(autotune="full", batch_size=4))
    assert float_nodes["sample"].feeds["x"].shape == (4, 3, 8, 8)


def test_ranges_may_come_from_a_table(model, output, float_nodes, tmp_path):
    table = tmp_path / "t.json"
    first = quantize_static(model, output, data(), QuantConfig(table=(table,), table_format=("json",)))
    result = quantize_static(model, output, None, QuantConfig(autotune="full", from_table=table))
    assert result.plan.integer_nodes.keys() < first.plan.integer_nodes.keys() - result.tuning.floats.keys()
    assert "Conv" in result.plan.integer_nodes.values()
    assert result.speed is not None


def test_where_nothing_pays_the_output_is_float(model, output, float_nodes):
    float_nodes |= {"types": {"Conv", "MatMul", "GlobalAveragePool", "Flatten", "Gemm"}, "chosen": False}
    result = quantize_static(model, output, data(), QuantConfig(autotune="full"))
    assert not result.plan.integer_nodes
    assert any(
        "INT8 IS NOT SIGNIFICANTLY FASTER" in warning and "0.80 times" in warning
        for warning in result.warnings
    )
    assert "QuantizeLinear" not in operators(output)
    assert result.quality.sqnr > 100


def test_what_is_float_anyway_reaches_any_goal(model, output, float_nodes):
    float_nodes |= {"types": {"Conv", "MatMul", "GlobalAveragePool", "Flatten", "Gemm"}, "chosen": False}
    result = quantize_static(model, output, data(), QuantConfig(autotune="full", goal="sqnr>=90"))
    assert result.search is None
    assert "QuantizeLinear" not in operators(output)


def test_a_goal_keeps_what_the_tuner_found(model, output, float_nodes):
    result = quantize_static(model, output, data(), QuantConfig(autotune="full", goal="sqnr>=1"))
    assert result.search is not None
    (name,) = result.tuning.floats
    assert result.plan.float_nodes[name].reason == WHY


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {n for n in TARGETS if n.startswith("onnxruntime")}))
def test_other_runtimes_are_not_measured(model, output, name):
    with pytest.raises(ConfigError, match="autotune measures on this machine with ONNX Runtime"):
        quantize_static(model, output, data(), QuantConfig(autotune="full", target=name))
    assert not output.exists()


def test_other_providers_are_not_measured(model, output):
    with pytest.raises(ConfigError, match="autotune measures with CPUExecutionProvider only, got Other"):
        quantize_static(model, output, data(), QuantConfig(autotune="full", provider=("Other",)))


# --- automatically ------------------------------------------------------------------------------


@pytest.fixture
def looked(monkeypatch):
    """What the short look finds; whether it was taken."""
    seen = {"fast": False, "taken": False}

    def is_fast(*_):
        seen["taken"] = True
        return seen["fast"]

    monkeypatch.setattr(apply, "is_fast", is_fast)
    return seen


def test_where_int8_is_not_fast_it_is_tuned(model, output, float_nodes, looked):
    result = quantize_static(model, output, data())
    assert result.plan.float_nodes[next(iter(result.tuning.floats))].reason == WHY
    assert float_nodes["effort"].seconds < 60


def test_where_int8_is_fast_nothing_is_searched(model, output, float_nodes, looked):
    looked["fast"] = True
    assert quantize_static(model, output, data()).tuning is None
    assert looked["taken"]
    assert "effort" not in float_nodes


@pytest.mark.parametrize(
    "options", [{"autotune": "off"}, {"target": "tensorrt"}, {"weight": "int4"}, {"block_size": 16}], ids=str
)
def test_nothing_is_timed_that_does_not_count(model, output, looked, options):
    assert quantize_static(model, output, data(), QuantConfig(**options)).tuning is None
    assert not looked["taken"]


def test_a_failure_costs_no_model(model, output, looked, monkeypatch, caplog):
    monkeypatch.setattr(apply, "tune", lambda *_: 1 / 0)
    result = quantize_static(model, output, data())
    assert result.tuning is None
    assert result.plan.integer_nodes
    assert "not autotuned, because it failed (ZeroDivisionError" in caplog.text


def test_switches_of_earlier_versions_are_understood():
    assert [QuantConfig(autotune=value).autotune for value in (True, False, "auto")] == [
        "full",
        "off",
        "auto",
    ]


# --- the last look --------------------------------------------------------------------------------


def test_a_faster_model_is_not_spoken_of(model, output, times):
    result = quantize_static(model, output, data())
    assert result.speed.ratio == pytest.approx(2)
    assert not any("SLOWER" in warning for warning in result.warnings)


def test_a_slower_model_is_warned_of(model, output, times):
    times[:] = 0.001, 0.003
    result = quantize_static(model, output, data())
    (warning,) = (warning for warning in result.warnings if "SLOWER" in warning)
    assert (
        "3.00 ms a run instead of 1.00 ms. --autotune full keeps nodes in float where float is faster."
        in warning
    )
    assert output.exists()


def test_nobody_cares_for_microseconds(model, output, times):
    times[:] = 0.00001, 0.00003
    assert not any("SLOWER" in warning for warning in quantize_static(model, output, data()).warnings)


def test_models_for_other_runtimes_are_not_timed(model, output, times):
    times[:] = 0.001, 0.003
    result = quantize_static(model, output, data(), QuantConfig(target="tensorrt"))
    assert result.speed is None
    assert not any("SLOWER" in warning for warning in result.warnings)


# --- what is told ---------------------------------------------------------------------------------


def test_what_was_found_can_be_had_again_without_timing(model, output, float_nodes, tmp_path, capsys):
    file, saved = tmp_path / "d.npz", tmp_path / "c.yaml"
    save_data(file)
    arguments = [str(model), str(output), "--data", str(file)]
    assert main(["quantize", *arguments, "--autotune", "full", "--save-config", str(saved)]) == 0
    out = capsys.readouterr().out
    assert "1 node kept in float: 1.50 times as fast as float (chosen)" in out
    assert "kept in float: MatMul_y; --save-config lists them all under exclude" in out
    assert "1 MatMul: slower in integers on this machine: … ms instead of … ms" in out
    first = onnx.load(output)
    again = QuantConfig.load(saved)
    assert (again.exclude, again.autotune) == (("MatMul_y",), "off")
    assert main(["quantize", *arguments, "--config", str(saved), "--quiet"]) == 0
    assert onnx.load(output).graph == first.graph
