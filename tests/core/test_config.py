"""The options: what is taken, what is refused and in which words, and the YAML file."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from calibrators.data.preprocess import PRESETS
from calibrators.methods import CALIBRATORS
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.option_errors import explain
from onnxq.core.option_types import Method
from onnxq.core.overrides import Override, parse_override
from onnxq.core.overrides import written as override_text
from onnxq.targets import TARGETS


def test_the_methods_are_those_that_exist():
    assert set(get_args(Method)) == set(CALIBRATORS)


def test_the_help_names_all_targets_and_presets():
    fields = QuantConfig.model_fields
    assert all(name in fields["target"].description for name in TARGETS)
    assert all(name in fields["preprocess"].description for name in PRESETS)


def test_every_option_has_a_help_text_and_stands_in_a_group():
    for name, field in QuantConfig.model_fields.items():
        assert field.description, name
        assert field.json_schema_extra["group"] in {
            *(
                "mode",
                "data",
                "ranges",
                "accuracy",
                "metric",
                "goal",
                "speed",
                "tables",
                "plan",
                "types",
                "running",
            ),
        }, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "best"},
            "method: expected 'minmax', 'moving-average', 'percentile', 'entropy', 'mse' or 'auto', got 'best'",
        ),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"samples": "many"}, "samples: expected a whole number, got 'many'"),
        ({"samples": 1.5}, "samples: expected a whole number, got 1.5"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"percentile": 50}, "percentile: expected more than 50.0, got 50"),
        ({"percentile": 100.1}, "percentile: expected at most 100.0, got 100.1"),
        ({"percentile": "high"}, "percentile: expected a number, got 'high'"),
        ({"activation": "int3"}, "'uint16', 'int16' or 'float8e4m3fn', got 'int3'"),
        ({"weight": "int3"}, "'int4', 'uint2', 'float16' or 'float8e4m3fn', got 'int3'"),
        ({"block_size": 0}, "block_size: expected at least 1, got 0"),
        ({"per_tensor": "perhaps"}, "per_tensor: expected true or false, got 'perhaps'"),
        ({"target": 8}, "target: expected a string, got 8"),
        ({"exclude": 3}, "exclude: expected a list of strings, got 3"),
        ({"exclude": ["op:Conv", 3]}, "exclude: expected a string, got 3"),
        ({"data": 3}, "data: expected a path, got 3"),
        ({"data": ""}, "data: expected a path, got ''"),
        ({"threads": -1}, "threads: expected at least 0, got -1"),
        ({"preprocess": "photo"}, "no preset 'photo'. Presets: imagenet, unit, signed, raw; keys: resize"),
        ({"preprocess": "resize=big"}, "resize=big: expected a whole number of pixels"),
        ({"data": "a.npz", "from_table": "b.npz"}, "(data, from_table) both give the ranges: use one"),
        ({"override": "head/*"}, "override: expected 'PATTERN: option=value, ...' with the options method"),
        ({"override": "head/*: metod=mse"}, "got 'head/*: metod=mse'"),
        ({"override": "head/*: method=best"}, "method: expected minmax, moving-average, percentile, entropy"),
        ({"override": "head/*: per_tensor=maybe"}, "per_tensor: expected true or false, got 'maybe'"),
        ({"metod": "mse"}, "unknown option 'metod'; valid options: data, preprocess, samples"),
    ],
)
def test_what_is_wrong_is_told(options, message):
    with pytest.raises(ConfigError) as caught:
        QuantConfig(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError, match=r"^samples: .*; threads: .*got -1$"):
        QuantConfig(samples=0, threads=-1)


def test_options_are_spelled_as_the_user_knows_them():
    with pytest.raises(ConfigError) as caught:
        QuantConfig(batch_size=0)
    cause = caught.value.__cause__
    assert isinstance(cause, ValidationError)
    assert (
        explain(cause, QuantConfig.model_fields, spell=lambda name: f"<{name}>")
        == "<batch_size>: expected at least 1, got 0"
    )


def test_one_pattern_alone_is_not_taken_for_letters():
    assert QuantConfig(exclude="op:Conv").exclude == ("op:Conv",)


def test_an_override_names_nodes_and_options():
    config = QuantConfig(override=["op:Conv: method=minmax , per-tensor", "a: per_tensor=false, weight=int4"])
    assert config.overrides == (
        Override("op:Conv", method="minmax", per_tensor=True),
        Override("a", weight="int4", per_tensor=False),
    )
    text = override_text("a", {"method": "mse"})
    assert parse_override(text, {"method": ["mse"]}) == Override("a", method="mse")


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        QuantConfig().samples = 3


# --- the file -------------------------------------------------------------------------------------

FULL = QuantConfig(
    data=Path("pictures"),
    preprocess="resize=256,crop=224",
    samples=7,
    batch_size=2,
    skip_bad_samples=True,
    every_element=True,
    method="percentile",
    percentile=99.5,
    goal="sqnr>=25",
    float_type="float16",
    io_types="float",
    floor=0,
    strict=True,
    search_log=Path("l.json"),
    autotune="full",
    verify="full",
    correct=("bias",),
    time_limit=60,
    table=("t.cache", "t.json"),
    table_format=("tensorrt", "ppq"),
    save_statistics=Path("s.npz"),
    report=Path("r.html"),
    target="tensorrt",
    activation="int8",
    weight="int8",
    block_size=64,
    per_tensor=True,
    weight_method="absmax",
    override=("head/*: weight=int4",),
    exclude=("op:Softmax", "/head/*"),
    include=("*",),
    quantize_outputs=True,
    metric="my_metric.py:share",
    labels="labels.npy",
    provider=("CPUExecutionProvider",),
    threads=2,
    seed=3,
)


@pytest.mark.parametrize("config", [QuantConfig(), FULL], ids=["defaults", "everything"])
def test_what_is_saved_is_what_is_read(tmp_path, config):
    config.save(tmp_path / "c.yaml")
    loaded = QuantConfig.load(tmp_path / "c.yaml")
    assert loaded == config
    assert (config.file, loaded.file) == (None, tmp_path / "c.yaml")
    assert loaded.changed(seed=3).file == loaded.model_copy(update={"seed": 3}).file == loaded.file


def test_everything_is_everything():
    """The round trip above would miss a field that is left at its default."""
    default = QuantConfig().model_dump()
    left = [name for name, value in FULL.model_dump().items() if value == default[name]]
    assert left == ["from_table", "mode", "format"]


def written(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_names_may_be_spelled_as_on_the_command_line(tmp_path):
    path = written(tmp_path, "batch-size: 4\nmethod: minmax\nexclude: op:Conv\n")
    assert QuantConfig.load(path) == QuantConfig(batch_size=4, method="minmax", exclude=("op:Conv",))


def test_overrides_win_over_the_file(tmp_path):
    path = written(tmp_path, "samples: 4\nmethod: minmax\n")
    assert QuantConfig.load(path, samples=9) == QuantConfig(samples=9, method="minmax")


def test_an_empty_file_means_the_defaults(tmp_path):
    assert QuantConfig.load(written(tmp_path, "")) == QuantConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metod: mse", "c.yaml: unknown option 'metod'; valid options: data, "),
        ("method: best", "c.yaml: method: expected 'minmax', "),
        ("- mse", "c.yaml: expected lines like 'method: entropy', got a list"),
        ("samples: 4\na: [", "c.yaml, line 2: not YAML: expected the node content"),
        ("samples: 4\nseed: 1\n  goal: x", "c.yaml, line 3: not YAML: mapping values"),
        (b"\xff\xfe", "c.yaml: not YAML: 'utf-8' codec"),
        ("samples: 4\nseed: 1\nsamples: 5", "c.yaml, line 3: 'samples' is given twice: keep one"),
        ("\x00", "c.yaml: not YAML: unacceptable character"),
        ("!!python/object/apply:os.getcwd []", "c.yaml, line 1: not YAML: could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        QuantConfig.load(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the options in .*c\.yaml: No such file"):
        QuantConfig.load(tmp_path / "c.yaml")


def test_a_wrong_override_does_not_blame_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"^samples: expected at least 1"):
        QuantConfig.load(written(tmp_path, "method: mse"), samples=0)


def test_saving_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot write the options to .*c\.yaml: No such file"):
        QuantConfig().save(tmp_path / "missing" / "c.yaml")


def test_metrics_in_python_are_options_but_are_not_written(tmp_path):
    config = QuantConfig(metric=len, labels=np.arange(3))
    assert (config.metric, config.labels) == (len, (0, 1, 2))
    with pytest.raises(ConfigError, match="metric: an object in Python cannot be written"):
        config.save(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"metric: .*FILE\.py:FUNCTION, a built-in name"):
        QuantConfig(metric=3)
