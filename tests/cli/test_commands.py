"""The command line as its users see it: output, exit codes, terminals, interrupts."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli import ROOT, environment, listen, onnxq, python, save_data, save_model
from rich import text

import onnxq as package
from onnxq.cli import commands, interrupts, terminal
from onnxq.cli.tables import render
from onnxq.cli.tables.search_rows import speed_row
from onnxq.core.config import QuantConfig
from onnxq.core.plan import FloatNode, QuantPlan
from onnxq.pipelines import acceptance
from onnxq.verify.latency import Speed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model ``m.onnx`` and data ``d.npz``."""
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return commands.main([*map(str, arguments)])


def unfolded(table):
    """The text of a table with the lines joined that were folded to its width."""
    rows = [line.strip("│").split("│") for line in table.splitlines() if line.startswith("│")]
    return "".join((f"\n{name.strip()} " if name.strip() else " ") + text.strip() for name, text in rows)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# --- quantize -------------------------------------------------------------------------------------


def test_quantize_writes_a_model_and_tells_of_it(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("1 of 1 Conv", "1 of 1 MatMul", "of float", "y: SQNR", "held-out samples: 4", " s "):
        assert part in out
    ops = {node.op_type for node in onnx.load("o.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops
    assert files(folder) == ["d.npz", "m.onnx", "o.onnx"]


def test_the_module_and_the_command_are_the_same(folder, capsys):
    assert commands.quantize(["m.onnx", "a.onnx", "--data", "d.npz", "--quiet"]) == 0
    assert run("quantize", "m.onnx", "b.onnx", "--data", "d.npz", "--quiet") == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert capsys.readouterr() == ("", "")


def test_nodes_that_stay_float_are_told_with_reasons(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--exclude", "op:MatMul") == 0
    out = capsys.readouterr().out
    assert "1 MatMul: excluded by …" in out
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--exclude", "op:MatMul", "--verbose") == 0
    assert "MatMul_y (MatMul): excluded by 'op:MatMul'" in capsys.readouterr().out


def test_verbose_tells_each_step(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--verbose") == 0
    steps = capsys.readouterr().err.splitlines()
    assert {"reading the model", "calibrating", "choosing ranges"} <= set(steps)
    assert len(steps) == len(set(steps))


def test_quiet_prints_nothing(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_without_data_the_warning_cannot_be_missed(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx") == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: NO CALIBRATION DATA")
    assert len(err.splitlines()) == 1
    assert "NO CALIBRATION DATA" in out  # into a file goes the whole truth
    assert run("quantize", "m.onnx", "o.onnx", "--quiet") == 0
    assert capsys.readouterr() == ("", err)


def test_a_poor_result_is_told(folder, capsys):
    rng = np.random.default_rng(0)
    spread = (rng.standard_normal((20, 3, 8, 8)) * 10.0 ** rng.integers(-6, 6, (20, 1, 1, 1))).astype(
        np.float32
    )
    spread[4::5] = 1e-6  # judged on what the range is far too wide for
    save_data(folder / "d.npz", x=spread)
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--method", "minmax", "--quiet") == 0
    assert "warning: INACCURATE: output 'y' is far from the float model's: SQNR" in capsys.readouterr().err


@pytest.mark.parametrize("files", [("quantize", "m.onnx", "o.onnx"), ("calibrate", "m.onnx", "s.npz")])
def test_a_sample_that_alone_widens_the_ranges_is_told(folder, capsys, files):
    samples = np.clip(np.random.default_rng(0).standard_normal((20, 3, 8, 8)), -2, 2).astype(np.float32)
    samples[16] *= 5  # not one that is held out
    save_data(folder / "d.npz", x=samples)
    options = ("--data", "d.npz", *(("--method", "minmax") if "quantize" in files else ()))
    assert run(*files, *options) == 0
    brief = unfolded(capsys.readouterr().out)
    assert "still grew by more than 10% over the last quarter of the samples" in brief
    assert "without d.npz[16] alone" in brief
    assert "x: 80.0%" not in brief
    assert run(*files, *options, "--verbose") == 0
    full = unfolded(capsys.readouterr().out)
    assert "x: 80.0%" in full
    assert "d.npz[16]: x, " in full


def test_synthetic_samples_are_not_asked_whether_they_are_enough(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx") == 0
    assert "ranges" not in capsys.readouterr().out.replace("ranges come from", "")


def test_a_pattern_that_matches_nothing_is_told(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet", "--exclude", "op:Cnov") == 0
    assert "warning: pattern 'op:Cnov' matches no node" in capsys.readouterr().err


def test_preprocessing_of_arrays_is_told(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet", "--preprocess", "unit") == 0
    assert "warning: preprocess 'unit' is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--report", "r.html"),
        ("--table", "t.cache"),
        ("--save-statistics", "s.npz"),
        ("--search-log", "l.log", "--goal", "sqnr>=20"),
        ("--quiet", "--report", "r.html"),
    ],
    ids=" ".join,
)
def test_a_dry_run_says_which_files_it_does_not_write(folder, capsys, options):
    save_model(
        folder / "m.onnx", "g (float[N,32] x) => (float[N,64] y) <float[32,64] w> { y = MatMul(x, w) }"
    )
    assert run("quantize", "m.onnx", "o.onnx", "--dry-run", "--quantize-outputs", *options) == 0
    told = capsys.readouterr().err
    assert "a dry run writes no model, so also not:" in told
    for option in set(options) & {"--report", "--table", "--save-statistics", "--search-log"}:
        assert option in told
    assert files(folder) == ["d.npz", "m.onnx"]


def test_a_dry_run_writes_the_options(folder, capsys):
    """Options are the one thing that a dry run knows as well as a whole run."""
    options = ("--method", "mse", "--exclude", "op:Conv")
    assert run("quantize", "m.onnx", "o.onnx", "--dry-run", "--save-config", "c.yaml", *options) == 0
    assert capsys.readouterr().err == ""
    assert files(folder) == ["c.yaml", "d.npz", "m.onnx"]
    assert QuantConfig.load(Path("c.yaml")) == QuantConfig(method="mse", exclude=["op:Conv"])
    assert run("quantize", "m.onnx", "o.onnx", "--dry-run", "--save-config", "m.onnx", *options) == 1
    assert "m.onnx" in capsys.readouterr().err


def test_a_dry_run_gives_the_plan_needs_no_data_and_writes_nothing(folder, capsys):
    arguments = ("m.onnx", "o.onnx", "--dry-run", "--exclude", "op:MatMul", "--data", "missing")
    assert run("quantize", *arguments, "--save-statistics", "s.npz") == 0
    out, err = capsys.readouterr()
    assert err == "warning: a dry run writes no model, so also not: --save-statistics\n"
    assert "Conv_c" in out
    assert "MatMul_y: excluded by 'op:MatMul'" in out
    assert files(folder) == ["d.npz", "m.onnx"]
    assert run("quantize", *arguments, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_names_are_printed_as_they_are(folder, capsys):
    """Node names may look like the markup of the library that prints them."""
    model = onnx.load("m.onnx")
    model.graph.node[0].name = "a[/b]:cat:[red]"
    onnx.save(model, "m.onnx")
    assert run("inspect", "m.onnx") == 0
    assert "a[/b]:cat:[red]" in capsys.readouterr().out


EVIL = "\x1b[2J\x1b]0;title\x07\x9b1m\r\b\x7f\u202eli"
"""A name that clears the screen, sets the window's title, and turns the direction of text around."""

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture
def evil(folder):
    """Every name in the model ``e.onnx`` and the data ``d.npz`` holds control characters."""
    proto = onnx.load("m.onnx")
    names = {value: value + EVIL for node in proto.graph.node for value in (*node.input, *node.output)}
    for index, node in enumerate(proto.graph.node):
        node.name = f"{EVIL}{index}"
        node.input[:] = [names[value] for value in node.input]
        node.output[:] = [names[value] for value in node.output]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = names[value.name]
    onnx.save(proto, "e.onnx")
    np.savez(folder / "e.npz", **{names["x"]: np.load("d.npz")["x"]})
    return names


COMMANDS = [
    ["inspect", "e.onnx"],
    ["inspect", "e.onnx", "--json"],
    ["inspect", "e.onnx", "--exclude", f"*{EVIL}", "--verbose"],
    ["quantize", "e.onnx", "q.onnx", "--data", "e.npz", "--verbose", "--exclude", f"no{EVIL}"],
    ["quantize", "e.onnx", "q.onnx", "--data", "e.npz", "--dry-run"],
    ["quantize", "e.onnx", f"{EVIL}.onnx", "--data", "e.npz", "--goal", "sqnr>=45"],
    ["quantize", "e.onnx", "q.onnx", "--data", "d.npz"],
    ["quantize", "e.onnx", "q.onnx", "--data", "d.npz", "--verbose"],
    ["quantize", "e.onnx", "q.onnx", "--data", EVIL],
    ["quantize", "e.onnx", "q.onnx", "--target", EVIL],
    ["quantize", "e.onnx", "q.onnx", "--target", f"{EVIL}.yaml"],
    ["quantize", "e.onnx", "q.onnx", f"--{EVIL}"],
    ["quantize", EVIL, "q.onnx"],
    [EVIL],
    ["calibrate", "e.onnx", f"{EVIL}.npz", "--data", "e.npz", "--verbose"],
    ["sensitivity", "e.onnx", "--data", "e.npz"],
    ["sensitivity", "e.onnx", "--data", "e.npz", "--json"],
    ["compare", "e.onnx", "e.onnx", "--data", "e.npz"],
    ["verify", "e.onnx", "--data", "e.npz", "--verbose"],
    ["verify", "e.onnx", "--data", "e.npz", "--json"],
]


@pytest.mark.parametrize("shown", ["plain", "terminal"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command).replace(EVIL, "EVIL"))
def test_no_control_character_of_a_name_is_printed(evil, capsys, request, command, shown):
    if shown == "terminal":
        request.getfixturevalue("terminal_of_80_columns")
    run(*command)
    out, err = capsys.readouterr()
    assert out + err
    for line in (out + err).split("\n"):
        plain = re.sub(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]|\x1b\[1A|\x1b\[2K|\r", "", line)  # the printer's own
        assert not CONTROLS.search(plain), repr(line)
    if "--json" in command:
        assert json.loads(out)


# --- reproducible ---------------------------------------------------------------------------------


def quantized(name, *options):
    assert run("quantize", "m.onnx", name, "--quiet", *options) == 0
    return Path(name).read_bytes()


def test_the_same_inputs_give_the_same_bytes(folder):
    assert quantized("a.onnx", "--data", "d.npz") == quantized("b.onnx", "--data", "d.npz", "--threads", "1")


def test_the_same_seed_gives_the_same_bytes(folder):
    first = quantized("a.onnx", "--seed", "1")
    assert first == quantized("b.onnx", "--seed", "1")
    assert first != quantized("c.onnx", "--seed", "2")


def test_saved_options_give_the_same_bytes(folder):
    options = (
        "--data",
        "d.npz",
        "--method",
        "entropy",
        "--exclude",
        "op:MatMul",
        "--per-tensor",
        "--batch-size",
        "3",
    )
    first = quantized("a.onnx", *options, "--save-config", "c.yaml")
    assert first == quantized("b.onnx", "--config", "c.yaml")
    assert first != quantized("c.onnx", "--config", "c.yaml", "--method", "minmax")  # what is given wins


@pytest.mark.parametrize("method", ["minmax", "moving-average", "percentile", "entropy", "mse", "auto"])
def test_saved_statistics_give_the_same_bytes_with_every_method(folder, method):
    quantized("a.onnx", "--data", "d.npz", "--method", "minmax", "--save-statistics", "s.npz")
    direct = quantized("b.onnx", "--data", "d.npz", "--method", method, "--correct", "none")
    assert direct == quantized("c.onnx", "--from-table", "s.npz", "--method", method)


# --- compare, inspect -----------------------------------------------------------------------------


def test_compare(folder, capsys):
    quantized("o.onnx", "--data", "d.npz")
    assert run("compare", "m.onnx", "o.onnx", "--data", "d.npz") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("y: SQNR", "agreement with float", "20 samples", "of float", "times as fast (1 thread)"):
        assert part in out


def test_compare_without_data_says_so(folder, capsys):
    quantized("o.onnx")
    capsys.readouterr()
    assert run("compare", "m.onnx", "o.onnx", "--samples", "2") == 0
    assert "warning: compared on synthetic inputs" in capsys.readouterr().err


def test_inspect_as_json(folder, capsys):
    assert run("inspect", "m.onnx", "--json", "--target", "tensorrt", "--exclude", "op:MatMul") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["target"] == "tensorrt"
    assert {"name": "Conv_c", "op_type": "Conv"} in plan["integer_nodes"]
    reasons = {node["name"]: node["reason"] for node in plan["float_nodes"]}
    assert reasons["MatMul_y"] == "excluded by 'op:MatMul'"
    weight = next(point for point in plan["points"] if point["tensor"] == "w")
    assert (weight["consumer"], weight["input_index"], weight["axis"]) == ("Conv_c", 1, 0)
    assert weight["block_size"] is None


def test_inspect_tells_of_4_bits_and_blocks(folder, capsys):
    save_model(folder / "m.onnx", "g (float[N,64] x) => (float[N,8] y) <float[64,8] w> { y = MatMul (x, w) }")
    static = ("--mode", "static", "--weight", "int4")
    assert run("inspect", "m.onnx", "--json", *static, "--block-size", "32") == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert (point["type"], point["axis"], point["block_size"]) == ("int4", 0, 32)
    assert run("inspect", "m.onnx", *static, "--target", "tensorrt") == 2
    assert "valid: int8; with --block-size 16, 32, 64, 128, 256: int4" in capsys.readouterr().err


def test_inspect_takes_no_options_of_other_commands(folder, capsys):
    assert run("inspect", "m.onnx", "--data", "d.npz") == 2
    assert "unknown option --data; valid options: --target," in capsys.readouterr().err


# --- help -----------------------------------------------------------------------------------------


IDLE = [
    ("calibrate", "--verify"),
    ("compare", "--verify"),
    ("compare", "--every-element"),
    ("verify", "--verify"),
    ("verify", "--provider"),
    ("sensitivity", "--verify"),
    ("table", "--weight-method"),
]


@pytest.mark.parametrize(("name", "option"), IDLE)
def test_no_command_takes_what_means_nothing_to_it(capsys, name, option):
    assert run(name, "--help") == 0
    assert f"  {option}" not in capsys.readouterr().out
    assert run(name, "a.onnx", "b.onnx", f"{option}=auto") == 2
    assert f"unknown option {option}; valid options: " in capsys.readouterr().err


def test_what_quantize_reads_from_a_file_inspect_does_too(folder, capsys):
    (folder / "c.yaml").write_text("exclude: ['op:Conv']\ngoal: sqnr>=20\n")
    assert run("inspect", "m.onnx", "--config", "c.yaml") == 0
    assert "excluded" in capsys.readouterr().out


@pytest.mark.parametrize("files", [("calibrate", "m.onnx", "s.npz"), ("sensitivity", "m.onnx")])
def test_a_file_for_dynamic_mode_has_nothing_to_calibrate(folder, capsys, files):
    (folder / "c.yaml").write_text("mode: dynamic\n")
    assert run(*files, "--data", "d.npz", "--config", "c.yaml") == 2
    assert "mode dynamic" in capsys.readouterr().err
    assert not (folder / "s.npz").exists()


def test_alone_it_prints_its_help(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("usage: onnxq", "quantize", "compare", "inspect"))


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"onnxq {package.__version__}\n"


def test_an_unknown_command_lists_the_valid_ones(capsys):
    assert run("quantise") == 2
    err = capsys.readouterr().err
    assert "'quantise'" in err
    assert all(name in err for name in ("quantize", "compare", "inspect"))


@pytest.mark.parametrize("name", ["quantize", "calibrate", "compare", "inspect"])
def test_help_fits_a_terminal_and_explains_all_options(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(name, "--help") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith(f"usage: onnxq {name} ")


def test_help_keeps_names_whole_and_shows_examples(capsys, monkeypatch):
    for columns in ("80", "90", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        assert run("quantize", "--help") == 0
        words = capsys.readouterr().out.split()
        assert not [word for word in words if word.endswith("-") and word.strip("-")]
        assert {"full-bias,", "vitis-xint8,"} <= set(words)
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "positional arguments" not in out
    assert "onnxq quantize model.onnx int8.onnx --data samples/" in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_lists_every_option_with_choices_and_defaults(capsys):
    assert run("quantize", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in QuantConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in out
    assert (
        "--method {minmax,moving-average,percentile,entropy,mse,auto} how ranges are chosen; default: auto"
        in out
    )
    assert "default: 99.99" in out
    assert "(repeat for more); default: center, equalize, ranges, rounding, bias" in out


def test_help_offers_no_goal_where_nothing_is_searched(capsys):
    assert run("sensitivity", "--help") == 0
    out = capsys.readouterr().out
    assert "--correct" in out
    assert "--goal" not in out
    assert "--search-log" not in out


IMPORTS = """
import json, sys
from onnxq import cli
code = cli.main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["compare", "--help"], ["quantize", "--bad"]]
)
def test_what_needs_no_model_imports_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == (2 if "--bad" in arguments else 0)
    assert not {"torch", "onnxruntime", "onnx", "onnx_ir", "numpy", "rich"} & set(modules)


# --- the Python API -------------------------------------------------------------------------------

PUBLIC = [
    "CacheResult",
    "Calibration",
    "CalibrationError",
    "ConfigError",
    "Converted",
    "Goal",
    "ModelError",
    "OnnxqError",
    "QuantConfig",
    "QuantResult",
    "Requantized",
    "TargetError",
    "__version__",
    "calibrate",
    "convert",
    "merge",
    "quantize_cache",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weights",
    "requantize",
]


def test_the_public_names():
    assert sorted(package.__all__) == dir(package) == PUBLIC
    assert all(getattr(package, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="'onnxq' has no attribute 'quantise'"):
        _ = package.quantise


def test_importing_the_package_imports_nothing_heavy():
    text = "import sys, onnxq; print(sorted(name for name in sys.modules if name.split('.')[0] in "
    text += "('onnxq', 'calibrators', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'pydantic')))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "['onnxq']\n"


def test_python_and_the_command_line_give_the_same_bytes(folder):
    first = quantized("a.onnx", "--data", "d.npz", "--method", "entropy")
    result = package.quantize_static("m.onnx", "b.onnx", Path("d.npz"), package.QuantConfig(method="entropy"))
    assert Path("b.onnx").read_bytes() == first
    assert result.quality.samples == 4
    assert result.plan.integer_nodes["Conv_c"] == "Conv"
    batches = [{"x": row[None]} for row in np.load("d.npz")["x"]]
    package.quantize_static("m.onnx", "c.onnx", iter(batches), package.QuantConfig(method="entropy"))
    assert Path("c.onnx").read_bytes() == first


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data of type int: expected a path, or an iterable"),
        ({"x": np.zeros((1, 3, 8, 8), np.float32)}, "data of type dict: expected a path"),
        ([], "the data holds no samples"),
        ([None], "item 0 of the data"),
        ([{"z": np.zeros(3)}], "item 0 of the data: nothing for input 'x', only for 'z'"),
        ([{"x": "text"}], "item 0 of the data: the array for input 'x' has shape []"),
        ([{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}], "item 0 of the data: input 'x' holds NaN"),
    ],
)
def test_wrong_data_from_python(folder, data, message):
    with pytest.raises(package.CalibrationError) as caught:
        package.quantize_static("m.onnx", "o.onnx", data)
    assert message in str(caught.value)
    assert files(folder) == ["d.npz", "m.onnx"]


# --- terminals ------------------------------------------------------------------------------------


def on_a_terminal(columns, *arguments):
    """What a terminal of that width is shown, escape sequences included, and the exit code."""
    fcntl, pty, struct, termios = (
        pytest.importorskip(name) for name in ("fcntl", "pty", "struct", "termios")
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "onnxq.cli", *arguments]
    env = environment() | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # Linux says so at the end
        pass
    os.close(ours)
    return process.wait(), shown.decode()


def test_on_a_terminal_the_warning_stands_last_and_once(folder):
    code, shown = on_a_terminal(60, "quantize", "m.onnx", "o.onnx")
    assert code == 0
    assert "calibrating" in shown
    table = shown[shown.index("┌") :]
    assert table.index("quantized") < table.index("WARNING")
    assert shown.count("NO CALIBRATION DATA") == 1
    code, shown = on_a_terminal(60, "quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet")
    assert (code, shown) == (0, "")


@pytest.fixture
def terminal_of_80_columns(monkeypatch):
    """The closing words go to a terminal of 80 columns."""
    for name in ("OUT", "ERR"):
        stderr = name == "ERR"
        opened = terminal._Console(
            force_terminal=True, width=80, markup=False, highlight=False, stderr=stderr
        )
        for module in (terminal, render):
            monkeypatch.setattr(module, name, opened)


def test_the_closing_table_fits_a_terminal(folder, terminal_of_80_columns, capsys):
    name = "/a/rather/long/name/" * 5
    model = onnx.load("m.onnx")
    model.graph.node[-1].name = name
    onnx.save(model, "m.onnx")
    run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--exclude", "op:MatMul", "--verbose")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(text.Text.from_ansi(line).plain) <= 80 for line in lines)


def test_the_closing_table_fits_100_columns_where_no_terminal_limits_it(folder, capsys):
    """Names of any length, in the model and of its file, are folded, and none is cut off."""
    name, output = "layer." * 40, f"{'deep/' * 30}o.onnx"
    Path(output).parent.mkdir(parents=True)
    model = onnx.load("m.onnx")
    model.graph.node[-1].name = name
    onnx.save(model, "m.onnx")
    options = ("--data", "d.npz", "--exclude", "op:MatMul", "--verbose")
    assert run("quantize", "m.onnx", output, *options) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) == render.WIDTH == 100
    assert name in unfolded(out).replace(" ", "")


def test_times_agree_with_their_ratio():
    """Two of three turns were slowed by other work: each model's own median tells another ratio."""
    speed = Speed.of(np.array([[2.0, 1.0], [2.2, 2.0], [9.0, 4.5]]) * 1e-5)
    assert speed_row(speed, threads=1) == "0.0220 ms -> 0.0110 ms a run: 2.00 times as fast (1 thread)"
    assert "123 ms -> 61.7 ms a run: 2.00" in speed_row(Speed(0.12345, 0.06172, 2.0), threads=0)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("quantze",), "'quantize'"),
        (("quantize", "m.onnx", "o.onnx", "--metod", "mse"), "'--method'"),
        (("quantize", "m.onnx", "o.onnx", "--save-conf=c.yaml"), "'--save-config'"),
        (("quantize", "m.onnx", "o.onnx", "--method", "Entropi"), "'entropy'"),
        (("quantize", "m.onnx", "o.onnx", "--mode", "weights-only"), "'weight-only'"),
        (("quantize", "m.onnx", "o.onnx", "--correct", "bias,roundng"), "'rounding'"),
        (("quantize", "m.onnx", "o.onnx", "--target", "tensor-rt"), "'tensorrt'"),
        (("quantize", "m.onnx", "o.onnx", "--table", "t.x", "--table-format", "mqbnch"), "'mqbench'"),
        (("table", "s.npz", "t.cache", "--format", "tensort"), "'tensorrt'"),
        (("inspect", "m.onnx", "--config", "c.yaml"), "'exclude'"),
    ],
    ids=" ".join,
)
def test_the_name_that_was_meant_is_asked_for(folder, capsys, arguments, suggestion):
    Path("c.yaml").write_text("exclud: [Conv_c]\n", "utf-8")
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert f"; did you mean {suggestion}?" in err
    assert err.count("\n") == 1


def test_nothing_is_suggested_for_what_is_like_nothing(capsys):
    assert run("fnord") == 2
    assert "did you mean" not in capsys.readouterr().err


def test_corrections_in_one_list_or_one_by_one_are_the_same(folder, capsys):
    lists = (["bias,rounding"], ["bias", "rounding"], ["bias, rounding"])
    for number, names in enumerate(lists):
        options = [text for name in names for text in ("--correct", name)]
        file = f"{number}.yaml"
        assert (
            run("quantize", "m.onnx", "o.onnx", "--dry-run", "--quiet", "--save-config", file, *options) == 0
        )
        assert QuantConfig.load(Path(file)).correct == ("bias", "rounding")


def test_few_rows_tell_why_many_nodes_stay_float():
    nodes = {f"n{i}": FloatNode("Add", f"its input 't{i}' comes in float") for i in range(9)}
    kinds = {f"k{i}": FloatNode(f"Op{i:02}", "no kernel") for i in range(render.FLOAT_ROWS + 2)}
    plan = QuantPlan("t", (), (), {}, {}, nodes | kinds)
    rows = list(render._float_rows(plan, every_node=False))
    assert rows[0] == "9 Add: its input … comes in float"
    assert len(rows) == render.FLOAT_ROWS + 1
    assert rows[-1] == "3 more: --verbose lists them all"
    assert len(list(render._float_rows(plan, every_node=True))) == len(plan.float_nodes)


def test_progress_shows_pace_and_begins_anew_with_each_stage(terminal_of_80_columns, capsys):
    with terminal.progress(quiet=False) as told:
        told("reading")
        told("calibrating", 3, 10)
        told("calibrating", 5, 10)
        assert [task.description for task in told.bar.tasks] == ["calibrating"]
        assert (told.bar.tasks[0].completed, told.bar.tasks[0].total) == (5, 10)
        told("writing")
        assert (told.bar.tasks[0].completed, told.bar.tasks[0].total) == (0, None)
    assert "reading" in capsys.readouterr().err


def columns_after(seconds, steps, total):
    """What the bar shows beside itself when ``steps`` came one after another, each after so many seconds."""
    now = [0.0]
    with terminal.progress(quiet=False) as told:
        told.bar.get_time = lambda: now[0]
        for done in steps:
            told("calibrating", done, total)
            told.bar.tasks[0]._get_time = told.bar.get_time
            now[0] += seconds
        return [column.render(told.bar.tasks[0]).plain for column in told.bar.columns[2:]]


def test_progress_shows_the_rate_and_the_time_left(terminal_of_80_columns):
    assert columns_after(0.5, [0, 2, 4, 6], 26) == ["6/26 4.0/s", "00:05"]


def test_progress_without_a_total_shows_the_rate_alone(terminal_of_80_columns):
    assert columns_after(0.5, [0, 2, 4, 6], None) == ["6/? 4.0/s", ""]


def test_what_was_done_before_is_no_speed(terminal_of_80_columns):
    assert columns_after(1, [1000, 1002, 1004, 1006], 1026) == ["1006/1026 2.0/s", "00:10"]


def test_a_slow_model_has_a_rate_too(terminal_of_80_columns):
    assert columns_after(120, [0, 1, 2, 3], 10) == ["3/10 0.5/min", "14:00"]


# --- who does not listen --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("inspect", "m.onnx"), ("quantize", "m.onnx", "o.onnx", "--data", "d.npz")]
)
def test_a_reader_that_went_away_is_no_error(folder, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "onnxq.cli", *arguments]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment(), check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("o.onnx" in files(folder)) == ("o.onnx" in arguments)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_cannot_be_printed(folder, unbuffered):
    buffering = environment() | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        commands = [("inspect", "m.onnx"), ("quantize", "m.onnx", "o.onnx", "--data", "d.npz")]
        codes = [
            subprocess.run(
                [sys.executable, "-m", "onnxq.cli", *c], stdout=full, env=buffering, check=False
            ).returncode
            for c in commands
        ]
    assert codes == [1, 0]  # printing is all that inspect does; the model is written all the same
    assert "o.onnx" in files(folder)


# --- interrupts -----------------------------------------------------------------------------------


def kept(folder):
    """A folder with an earlier output."""
    Path("o.onnx").write_bytes(b"old")
    return files(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_calibrating(folder, number):
    save_data(folder / "d.npz", count=20_000)
    before = kept(folder)
    command = [sys.executable, "-m", "onnxq.quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--verbose"]
    command += ["--threads", "2", "--save-statistics", "s.npz", "--save-config", "c.yaml"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(), preexec_fn=listen
    )
    assert "calibrating\n" in iter(process.stderr.readline, "")
    process.send_signal(number)
    assert process.stderr.read().splitlines()[-1] == "error: interrupted"
    assert process.wait() == 1
    assert set(files(folder)) - set(before) <= {"s.npz"}  # what was counted, if it was so much
    assert Path("o.onnx").read_bytes() == b"old"


AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except KeyboardInterrupt:
                if {swallowed}:
                    raise ImportError("initialization failed")
                raise
sys.meta_path.insert(0, Finder())
from onnxq.cli import main
sys.argv[1:] = ["quantize", "m.onnx", "o.onnx"]
sys.exit(main())
"""


@pytest.mark.parametrize("swallowed", [False, True])
def test_interrupted_while_importing(folder, swallowed):
    before = kept(folder)
    script = AT_IMPORT.format(swallowed=swallowed)
    done = python("-c", script, preexec_fn=listen)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: interrupted\n")
    assert files(folder) == before


def test_an_interrupt_that_is_ignored_stays_ignored():
    """As in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with interrupts.Interrupts():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_an_interrupt_in_the_data_of_a_python_caller(folder):
    def data():
        yield {"x": np.zeros((1, 3, 8, 8), np.float32)}
        raise KeyboardInterrupt

    before = kept(folder)
    with pytest.raises(KeyboardInterrupt):
        package.quantize_static("m.onnx", "o.onnx", data())
    assert files(folder) == before


# --- bugs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a\nb"), "error: this is a bug in onnxq, please report it (ValueError: a b); "),
        (MemoryError(), "error: out of memory"),
        (
            OSError(28, "No space left on device", "/somewhere/x"),
            "error: /somewhere/x: No space left on device",
        ),
    ],
)
def test_the_unexpected_is_one_line_and_with_verbose_all(folder, capsys, monkeypatch, error, message):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("onnxq.pipelines.static.prepare", fail)
    assert run("quantize", "m.onnx", "o.onnx") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
    assert run("quantize", "m.onnx", "o.onnx", "--verbose") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith(message)
    assert files(folder) == ["d.npz", "m.onnx"]


def test_as_a_process(folder):
    done = onnxq("quantize", "m.onnx", "o.onnx", "--data", "d.npz", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    done = onnxq("quantize", "m.onnx", "o.onnx", "--data", "missing", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: missing: no such file or directory: give the path of the calibration data\n"


# --- goals and sensitivity ------------------------------------------------------------------------


def test_a_goal_is_reached_and_the_way_to_it_told(folder, capsys):
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--goal", "sqnr>=5") == 0
    assert "sqnr>=5 holds with 0 more nodes in float, after 1 trial" in capsys.readouterr().out
    assert (
        run("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--correct", "none", "--goal", "sqnr>=46") == 0
    )
    out = capsys.readouterr().out
    assert re.search(r"sqnr>=46 holds with \d more nodes? in float", out)
    assert "kept in float to reach the goal" in out
    assert re.search(r"in float: SQNR .* times as fast \(chosen\)", out)
    assert float(re.search(r"y: SQNR ([\d.]+) dB", out)[1]) >= 46


def test_weights_of_few_bits_get_more_for_a_goal(folder, capsys):
    options = ("--data", "d.npz", "--weight", "int4", "--correct", "none", "--goal", "sqnr>=25")
    assert run("quantize", "m.onnx", "o.onnx", *options) == 0
    out = unfolded(capsys.readouterr().out)
    assert re.search(r"sqnr>=25 holds with 0 more nodes in float, \d in int8, after \d+ trials", out)
    assert re.search(r"0 in float, \d in int8: SQNR .* constants [\d.,]+ \w+ \(chosen\)", out)
    assert re.search(r"wider weights: \w+", out)


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--data", "d.npz", "--goal", "sqnr>25"), 2, "goal: expected sqnr>=25"),
        (("--goal", "sqnr>=25"), 2, "give data (--data)"),
        (("--data", "d.npz", "--goal", "sqnr>=500"), 1, "no model with a node in integers reaches the goal"),
        (("--data", "d.npz", "--goal", "sqnr>=5", "--search-log", "d.npz"), 1, "d.npz"),
    ],
)
def test_what_is_wrong_with_a_goal_is_told_and_nothing_written(folder, capsys, options, code, part):
    before = (folder / "d.npz").read_bytes()
    assert run("quantize", "m.onnx", "o.onnx", *options) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert files(folder) == ["d.npz", "m.onnx"]
    assert (folder / "d.npz").read_bytes() == before


def test_a_search_goes_on_from_its_log(folder, capsys, monkeypatch):
    options = ("--data", "d.npz", "--goal", "sqnr>=47", "--search-log", "l.json", "--quiet")
    assert run("quantize", "m.onnx", "a.onnx", *options) == 0

    def measure(self, model, floats):
        raise AssertionError("measured again")

    monkeypatch.setattr("onnxq.algorithms.mixed_precision.evaluator.GoalEvaluator.evaluate", measure)
    assert run("quantize", "m.onnx", "b.onnx", *options) == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_sensitivity_ranks_the_points(folder, capsys):
    assert run("sensitivity", "m.onnx", "--data", "d.npz") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("what each point alone costs", "Conv_c (Conv)", "activation", "weight", "dB", "%"):
        assert part in out
    assert files(folder) == ["d.npz", "m.onnx"]


def test_sensitivity_for_machines(folder, capsys):
    assert run("sensitivity", "m.onnx", "--data", "d.npz", "--json") == 0
    points = json.loads(capsys.readouterr().out)
    assert {point["kind"] for point in points} == {"activation", "weight"}
    assert [point["noise"] for point in points] == sorted((p["noise"] for p in points), reverse=True)
    assert {"name": "MatMul_y", "op_type": "MatMul"} in [reader for p in points for reader in p["read_by"]]


def test_sensitivity_without_data_warns(folder, capsys):
    assert run("sensitivity", "m.onnx") == 0
    assert "warning: ranked on synthetic inputs" in capsys.readouterr().err


@pytest.mark.parametrize("given", [True, False])
def test_kernels_that_saturate_here_are_told(folder, capsys, monkeypatch, given):
    monkeypatch.setattr(acceptance, "saturates", lambda: given)
    assert run("quantize", "m.onnx", "o.onnx", "--data", "d.npz") == 0
    assert ("without VNNI" in capsys.readouterr().out) is given
