"""``--json``: every command that prints a result prints it as JSON too, and nothing else on stdout."""

import json

import pytest
from cli import onnxq, save_data, save_model

from onnxq.cli.commands import _COMMANDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("json")
    save_model(made / "m.onnx")
    save_data(made / "d.npz", 10)
    return made


def printed(folder, *arguments):
    done = onnxq(*arguments, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_commands_that_print_a_result_have_it():
    without = {name for name, command in _COMMANDS.items() if "--json" not in command.flags}
    assert without == {"completion"}


def test_quantize_and_what_follows(folder):
    made = printed(folder, "quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--threads", 1)
    assert made["output"] == "o.onnx"
    assert made["quality"]["sqnr"] > 20
    again = printed(folder, "requantize", "o.onnx", "q.onnx", "--target", "openvino", "--data", "d.npz")
    assert again["options"]["target"] == "openvino"
    compared = printed(folder, "compare", "m.onnx", "o.onnx", "--data", "d.npz")
    assert compared["quality"]["outputs"]["y"]["sqnr"] > 20
    assert set(compared["speed"]) == {"float_seconds", "int8_seconds", "ratio"}


def test_a_dry_run_prints_the_plan(folder):
    plan = printed(folder, "quantize", "m.onnx", "none.onnx", "--dry-run")
    assert plan["integer_nodes"]
    assert not (folder / "none.onnx").exists()


def test_statistics_and_tables(folder):
    found = printed(folder, "calibrate", "m.onnx", "s.npz", "--data", "d.npz")
    assert found["samples"] == 10
    assert found["tensors"]["x"]["count"] > 0
    table = printed(folder, "table", "s.npz", "t.json", "--format", "json")
    assert "x" in table["activations"]


def test_a_conversion(folder):
    made = printed(folder, "convert", "m.onnx", "h.onnx", "--data", "d.npz")
    assert made["dtype"] == "float16"
    assert made["after"] < made["before"]
