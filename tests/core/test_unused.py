"""Options that a flow has no use for are refused, or told where they only have no effect."""

import logging
from pathlib import Path

import numpy as np
import pytest
from cli import save_data, save_model

import onnxq
from onnxq.cli.commands import main
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.unused import PT2E, REQUANTIZE, TRAINING, Wanted, given, refuse, tell_unused

DATA = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)

OPTIONS = {
    "goal": "sqnr>=10",
    "search_log": "log.json",
    "autotune": "full",
    "table": "t.cache",
    "report": "r.html",
    "correct": "bias",
    "time_limit": 5,
    "preprocess": "unit",
    "batch_size": 4,
    "mode": "dynamic",
    "method": "mse",
    "data": "d.npz",
    "save_statistics": "s.npz",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def option(name):
    return QuantConfig(**{name: OPTIONS[name]})


@pytest.mark.parametrize("name", ["goal", "search_log", "autotune", "table", "report"])
def test_calibrate_gives_statistics_only(folder, name):
    with pytest.raises(ConfigError, match=f"it takes no {name}: leave them out"):
        onnxq.calibrate("m.onnx", [DATA], option(name))
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "m.onnx"]


def test_a_file_of_options_serves_several_commands(folder):
    """Only its options for calibration count here."""
    QuantConfig(goal="sqnr>=10", table="t.cache", method="mse", data="d.npz").save(Path("c.yaml"))
    assert main(["calibrate", "m.onnx", "s.npz", "--config", "c.yaml", "--quiet"]) == 0
    assert Path("s.npz").exists()
    assert not Path("t.cache").exists()


@pytest.mark.parametrize("name", ["mode", "preprocess", "batch_size"])
def test_an_own_loop_takes_batches_as_they_are(folder, name):
    with pytest.raises(ConfigError, match=f"so no {name}: leave them out"):
        onnxq.Calibration("m.onnx", option(name))


@pytest.mark.parametrize("name", sorted(set(REQUANTIZE) & OPTIONS.keys()))
def test_scales_that_are_kept_need_no_choice(folder, name):
    onnxq.quantize_static("m.onnx", "q.onnx", [DATA], QuantConfig(verify="off", correct="none"))
    with pytest.raises(ConfigError, match=f"a model that keeps its scales takes no {name}"):
        onnxq.requantize("q.onnx", "o.onnx", [DATA], option(name))
    assert not Path("o.onnx").exists()
    onnxq.requantize("q.onnx", "o.onnx", [DATA], QuantConfig(correct="none", verify="off"))


@pytest.mark.parametrize("name", sorted(set(TRAINING) & OPTIONS.keys()))
def test_training_refuses_what_it_does_not_do(name):
    torch = pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=f"quantization-aware training takes no {name}"):
        onnxq.torch.prepare_qat(torch.nn.Linear(4, 4), torch.zeros(2, 4), config=option(name))


@pytest.mark.parametrize("name", sorted(set(PT2E) & OPTIONS.keys()))
def test_observers_of_torchao_choose_ranges(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchao")
    with pytest.raises(ConfigError, match=f"so the quantizer takes no {name}"):
        onnxq.torch.quantizer("tensorrt", torch.zeros(2, 4), option(name))


@pytest.mark.parametrize(
    ("options", "wanted", "told"),
    [
        ({"percentile": 99.0}, {}, "percentile is not used: it is for method percentile"),
        ({"percentile": 99.0, "method": "percentile"}, {}, ""),
        ({"percentile": 99.0, "override": "a: method=percentile"}, {}, ""),
        ({"time_limit": 3}, {}, ""),
        (
            {"time_limit": 3},
            {"has_data": False},
            "time_limit is not used: it is for corrections, and none is",
        ),
        ({"time_limit": 3, "correct": "none"}, {}, "time_limit is not used: it is for corrections, and none"),
        ({"search_log": "l"}, {}, "search_log is not used: there is no goal"),
        ({"search_log": "l"}, {"has_goal": True}, ""),
        ({"preprocess": "unit"}, {"has_data": False}, "preprocess is not used: there is no data"),
        ({"skip_bad_samples": True}, {"has_data": False}, "skip_bad_samples is not used: there is no data"),
        ({"correct": "bias"}, {"has_data": False}, "correct is not used: corrections are tried on held-out"),
        ({"correct": "none"}, {"has_data": False}, ""),
        ({"samples": 4}, {"has_data": False}, ""),
        ({"samples": 4, "from_table": "t"}, {"has_data": False}, "samples is not used: a table gives the"),
        ({"mode": "dynamic", "weight": "float16", "per_tensor": True}, {}, "per_tensor is not used: float16"),
        ({}, {"has_data": False}, ""),
    ],
)
def test_what_has_no_effect_is_told(caplog, options, wanted, told):
    with caplog.at_level(logging.WARNING):
        tell_unused(Wanted(QuantConfig(**options), **{"has_data": True} | wanted))
    assert [record.message.startswith(f"option {told}") for record in caplog.records] == [True] * bool(told)


def test_the_command_line_tells_it(folder, capsys):
    assert main(["quantize", "m.onnx", "o.onnx", "--quiet", "--data", "d.npz", "--percentile", "99"]) == 0
    assert "warning: option percentile is not used" in capsys.readouterr().err
    assert main(["quantize", "m.onnx", "o.onnx", "--quiet", "--data", "d.npz"]) == 0
    assert capsys.readouterr().err == ""


def test_a_table_has_its_ranges(folder, capsys):
    assert main(["quantize", "m.onnx", "o.onnx", "--quiet", "--data", "d.npz", "--table", "t.json"]) == 0
    assert main(["quantize", "m.onnx", "p.onnx", "--from-table", "t.json", "--method", "mse"]) == 2
    assert "t.json is a table with ranges, so no method chooses them" in capsys.readouterr().err
    assert not Path("p.onnx").exists()


def test_the_share_of_values_counts_for_single_nodes_too(folder):
    """An override with method percentile keeps the share that is asked for."""
    ranges = []
    for share in (99.99, 80):
        config = QuantConfig(override="op:Conv: method=percentile", percentile=share, correct="none")
        result = onnxq.quantize_static("m.onnx", "o.onnx", [DATA], config)
        ranges.append(result.table.activations["x"].high)
    assert ranges[1] < 0.7 * ranges[0]


def test_braces_in_a_path_are_no_place_for_names():
    with pytest.raises(ConfigError, match=r"^{date}\.json takes no samples$"):
        refuse(QuantConfig(samples=4), ("samples", "goal"), "{date}.json takes no {}")


def test_given():
    config = QuantConfig(correct=("none",), goal="sqnr>=3", samples=4)
    assert given(config, ("correct", "goal", "method", "samples")) == ["goal", "samples"]
