"""Every kind of bad input: one line that says what is wrong, the right exit code, and no file touched."""

import errno
import os
import resource
import socket
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import TEXT, python, save_data, save_model
from graphs import parse
from PIL import EpsImagePlugin, Image

import onnxq
from onnxq.cli import commands
from onnxq.graph import files

FAILED, WRONG_USAGE = 1, 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a model, data, statistics, and an output from before."""
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz")
    (tmp_path / "o.onnx").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(folder):
    """Every file with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(folder, capfd):
    """Run the command, check that it refuses properly; gives what it said."""

    def check(*arguments, code=FAILED, command="quantize"):
        before = state(folder)
        assert commands.main([command, *map(str, arguments)]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in err
        assert "bug" not in err
        assert state(folder) == before
        return err

    return check


# --- the model ------------------------------------------------------------------------------------


def test_no_model(refused):
    assert "missing.onnx: no such file" in refused("missing.onnx", "o.onnx")


def test_a_directory(refused, folder):
    assert "is a directory. Give the path of the .onnx file" in refused(folder, "o.onnx")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello, world\n" * 50, b"PK\x03\x04" + bytes(99)])
def test_no_onnx_file(refused, content):
    Path("bad.onnx").write_bytes(content)
    assert "bad.onnx: not an ONNX model, or a truncated one" in refused("bad.onnx", "o.onnx")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_model(refused, share):
    whole = Path("m.onnx").read_bytes()
    Path("bad.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert "bad.onnx" in refused("bad.onnx", "o.onnx")


def with_external_data():
    onnx.save(onnx.load("m.onnx"), "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)


def test_external_data_that_is_missing(refused):
    with_external_data()
    Path("e.data").unlink()
    message = refused("e.onnx", "o.onnx")
    assert "e.data" in message
    assert "is missing. Put it beside the model" in message


def test_external_data_that_is_truncated(refused):
    with_external_data()
    Path("e.data").write_bytes(b"short")
    assert "ends before tensor" in refused("e.onnx", "o.onnx")


def test_a_model_with_external_data_that_is_there(folder):
    with_external_data()
    assert commands.main(["quantize", "e.onnx", "o.onnx", "--data", "d.npz", "--quiet"]) == 0


def test_a_quantized_model(refused):
    assert commands.main(["quantize", "m.onnx", "q.onnx", "--data", "d.npz", "--quiet"]) == 0
    message = refused("q.onnx", "o.onnx")
    assert "q.onnx: already quantized" in message
    assert "give the float model" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }", "no integer kernel for Tanh"),
        ("g (int64[N,3] x) => (int64[N,3] y) { y = Add(x, x) }", "no node computes float numbers"),
    ],
)
def test_nothing_to_quantize(refused, folder, text, reason):
    save_model(folder / "n.onnx", text)
    message = refused("n.onnx", "o.onnx")
    assert "n.onnx: nothing to quantize for target onnxruntime" in message
    assert reason in message


def test_everything_excluded(refused):
    assert "excluded by '*'" in refused("m.onnx", "o.onnx", "--exclude", "*")


def test_a_model_that_does_not_run(refused):
    """Valid for the parser, refused by the runtime."""
    proto = onnx.load("m.onnx")
    proto.graph.node[-1].domain = "no.such.domain"
    proto.opset_import.append(onnx.helper.make_opsetid("no.such.domain", 1))
    onnx.save(proto, "bad.onnx")
    assert "no.such.domain" in refused("bad.onnx", "o.onnx", "--data", "d.npz")


@pytest.mark.parametrize("name", ["w", "b", "v"])
def test_weights_that_are_not_finite(refused, folder, name):
    shape = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 4)}[name]
    array = np.zeros(shape, np.float32)
    array.flat[1] = np.nan
    save_model(folder / "n.onnx", **{name: array})
    assert f"weight '{name}' holds NaN or infinite values" in refused("n.onnx", "o.onnx")


def test_an_invalid_model_that_breaks_something(refused, monkeypatch):
    """What nobody foresaw is the model's fault if onnx's checker or the runtime say so."""

    def fail(*_args):
        raise ValueError("unforeseen")

    monkeypatch.setattr("onnxq.pipelines.prepare.simplify", fail)
    proto = onnx.load("m.onnx")
    del proto.graph.node[0].input[:]
    onnx.save(proto, "bad.onnx")
    assert "bad.onnx: the model is not valid ONNX: " in refused("bad.onnx", "o.onnx")
    proto = onnx.load("m.onnx")
    proto.graph.node[-1].domain = "no.such.domain"
    proto.opset_import.append(onnx.helper.make_opsetid("no.such.domain", 1))
    onnx.save(proto, "bad.onnx")
    assert "ONNX Runtime cannot load the model bad.onnx" in refused("bad.onnx", "o.onnx")
    with pytest.raises(ValueError, match="unforeseen"):
        onnxq.quantize_static("m.onnx", "o.onnx")


@pytest.mark.parametrize("shape", [None, ["n", 3, 3, 3]])
def test_a_weight_that_is_declared_vaguely_is_what_its_tensor_is(folder, shape):
    proto = onnx.load("m.onnx")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, shape))
    onnx.save(proto, "m.onnx")
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet"]) == 0


# --- the data -------------------------------------------------------------------------------------


def test_no_such_data(refused):
    assert "missing: no such file or directory" in refused("m.onnx", "o.onnx", "--data", "missing")


def test_an_empty_directory(refused, folder):
    (folder / "empty").mkdir()
    assert "empty: the directory is empty: expected arrays" in refused("m.onnx", "o.onnx", "--data", "empty")


def test_a_directory_of_other_things(refused, folder):
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("text")
    assert "notes: none of its 1 files can be read" in refused("m.onnx", "o.onnx", "--data", "notes")


def test_a_file_of_another_kind(refused):
    assert "m.onnx: '.onnx' files are not read: expected" in refused("m.onnx", "o.onnx", "--data", "./m.onnx")


SHAPE = (20, 3, 8, 8)
NAN = np.zeros(SHAPE, np.float32)
NAN[7, 1, 2, 3] = np.nan


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.zeros((20, 3, 8, 9), np.float32), ("x", "[20, 3, 8, 9]", "[N, 3, 8, 8]")),
        (np.zeros((20, 8), np.float32), ("x", "[20, 8]", "[N, 3, 8, 8]")),
        (np.zeros((0, 3, 8, 8), np.float32), ("no samples",)),
        (np.zeros(SHAPE, np.complex64), ("x", "complex64", "float32")),
        (np.full(SHAPE, "a"), ("x", "<U1", "float32")),
        (np.full(SHAPE, None), ("x", "Python objects")),
        (NAN, ("bad.npz[7]", "x", "NaN at index [0, 1, 2, 3]")),
        (np.full(SHAPE, -np.inf, np.float32), ("bad.npz[0]", "x", "Inf at index [0, 0, 0, 0]")),
        (np.full(SHAPE, 1e300), ("bad.npz[0]", "beyond the range of float32")),
    ],
)
def test_arrays_that_do_not_fit(refused, folder, array, parts):
    save_data(folder / "bad.npz", x=array)
    message = refused("m.onnx", "o.onnx", "--data", "bad.npz")
    assert all(part in message for part in ("bad.npz", *parts)), message


def test_arrays_of_other_names(refused, folder):
    np.savez("bad.npz", image=np.zeros(SHAPE, np.float32), label=np.zeros(20))
    message = refused("m.onnx", "o.onnx", "--data", "bad.npz")
    assert (
        "no array for input 'x'. The file holds 'image', 'label', the model takes 'x' (float32 [N, 3, 8, 8])"
        in message
    )


def test_a_damaged_archive(refused):
    Path("bad.npz").write_bytes(Path("d.npz").read_bytes()[:-200])
    assert "bad.npz: cannot be read, or is damaged" in refused("m.onnx", "o.onnx", "--data", "bad.npz")


def test_an_unreadable_picture_is_named(refused, folder):
    (folder / "pictures").mkdir()
    (folder / "pictures" / "cat.jpg").write_bytes(b"no picture")
    message = refused("m.onnx", "o.onnx", "--data", "pictures")
    assert "pictures/cat.jpg: cannot be read as an image" in message


def test_a_provider_that_is_not_there(refused):
    message = refused("m.onnx", "o.onnx", "--data", "d.npz", "--provider", "AbacusExecutionProvider")
    assert "AbacusExecutionProvider is not in this ONNX Runtime; available: " in message
    assert "CPUExecutionProvider" in message


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--target", "abacus"], ["unknown target 'abacus'", "onnxruntime", "tensorrt"]),
        (["--method", "best"], ["--method: expected 'minmax', 'moving-average'", "got 'best'"]),
        (["--metod", "mse"], ["unknown option --metod; valid options: --data, ", "--method", "--dry-run"]),
        (["--metod=mse"], ["unknown option --metod; valid options: "]),
        (
            ["--meth", "mse"],
            ["unknown option --meth; valid"],
        ),  # no abbreviations: they break with new options
        (["--preprocess", "photo"], ["no preset 'photo'", "imagenet", "unit", "resize"]),
        (["--preprocess", "size=3"], ["'size=3' is not understood", "resize, crop, mean"]),
        (["--samples", "0"], ["--samples: expected at least 1, got '0'"]),
        (["--samples", "many"], ["--samples: expected a whole number, got 'many'"]),
        (["--batch-size", "0"], ["--batch-size: expected at least 1"]),
        (["--percentile", "101"], ["--percentile: expected at most 100"]),
        (["--activation", "int3"], ["--activation: expected 'uint8', 'int8'"]),
        (["--target", "tensorrt", "--activation", "uint8"], ["tensorrt does not take uint8", "int8"]),
        (["--data", ""], ["--data: expected a path"]),
        (["--data"], ["--data: expected one argument"]),
        (["--data", "d.npz", "--from-table", "s.npz"], ["(data, from_table)", "use one"]),
        (["more"], ["unexpected argument 'more'; expected MODEL OUTPUT and options"]),
        (["--config", "missing.yaml"], ["cannot read the options in missing.yaml: No such file"]),
    ],
)
def test_wrong_options(refused, options, parts):
    message = refused("m.onnx", "o.onnx", *options, code=WRONG_USAGE)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("arguments", [[], ["m.onnx"]])
def test_files_that_are_not_given(refused, arguments):
    message = refused(*arguments, code=WRONG_USAGE)
    assert "required: " in message
    assert "OUTPUT" in message
    assert "--help" in message


@pytest.mark.parametrize("text", ["metod: mse", "method: best", "- mse", "a: ["])
def test_a_wrong_file_of_options(refused, text):
    Path("c.yaml").write_text(text)
    assert "c.yaml" in refused("m.onnx", "o.onnx", "--config", "c.yaml", code=WRONG_USAGE)


def bomb(lines, merged=False):
    """YAML whose aliases multiply by nine on each line."""
    links = (
        [f"<<: [{', '.join(['*' + chr(96 + i)] * 9)}]" for i in range(1, lines)]
        if merged
        else [", ".join(f"k{j}: *{chr(96 + i)}" for j in range(9)) for i in range(1, lines)]
    )
    return "a: &a {x: 1}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{{link}}}\n" for i, link in enumerate(links)
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (bomb(10), "its aliases (*name) multiply"),
        (bomb(10, merged=True), "its aliases (*name) multiply"),
        ("threads: &a [*a]\n", "its aliases (*name) multiply"),
        ("threads: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("threads: " + "9" * 5000, "not YAML"),
        ("threads: 2001-99-99", "not YAML"),
    ],
)
@pytest.mark.parametrize("option", ["--config", "--target"])
def test_a_yaml_file_that_is_small_but_much(refused, text, problem, option):
    Path("c.yaml").write_text(text)
    assert problem in refused("m.onnx", "o.onnx", option, "c.yaml", code=WRONG_USAGE)


def test_aliases_are_fine(folder):
    text = "base: onnxruntime\nrules: {Conv: &rule {role: anchor}, ConvTranspose: *rule}\n"
    (folder / "t.yaml").write_text(text)
    (folder / "c.yaml").write_text("exclude: &names ['op:Gelu']\ninclude: []\ntarget: t.yaml\n")
    assert commands.main(["inspect", "m.onnx", "--config", "c.yaml"]) == 0


@pytest.fixture
def special(folder):
    """A pipe, a socket, a device, and links to them: nobody writes to the pipe."""
    os.mkfifo("pipe.bin")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.bin")
        Path("device.bin").symlink_to("/dev/zero")
        Path("link.bin").symlink_to("pipe.bin")
        yield [path.name for path in folder.glob("*.bin")]


SPECIAL = {
    "model": ("quantize", ["{}", "o.onnx"], FAILED),
    "int8": ("compare", ["m.onnx", "{}"], FAILED),
    "verify": ("verify", ["{}"], FAILED),
    "data": ("quantize", ["m.onnx", "o.onnx", "--data", "{}"], FAILED),
    "table": ("quantize", ["m.onnx", "o.onnx", "--from-table", "{}"], FAILED),
    "source": ("table", ["{}", "t.json"], FAILED),
    "config": ("quantize", ["m.onnx", "o.onnx", "--config", "{}"], WRONG_USAGE),
    "target": ("quantize", ["m.onnx", "o.onnx", "--target", "{}.yaml"], WRONG_USAGE),
    "log": (
        "quantize",
        ["m.onnx", "o.onnx", "--data", "d.npz", "--goal", "sqnr>=1", "--search-log", "{}"],
        FAILED,
    ),
    "export": ("export", ["{}.py:make", "o.onnx"], WRONG_USAGE),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", SPECIAL)
def test_no_pipe_socket_or_device_is_read(special, folder, capsys, place):
    command, arguments, code = SPECIAL[place]
    for name in special:
        for suffix in (".yaml", ".py"):
            if not Path(name + suffix).is_symlink():
                Path(name + suffix).symlink_to(name)
        assert commands.main([command, *(argument.format(name) for argument in arguments)]) == code
        err = capsys.readouterr().err
        assert "a pipe" in err, err
        assert (folder / "o.onnx").read_bytes() == b"old"


@pytest.mark.timeout(60)
def test_external_data_in_a_pipe_is_not_read(refused, special):
    with_external_data()
    Path("e.data").unlink()
    os.mkfifo("e.data")
    assert commands.main(["inspect", "e.onnx"]) == FAILED


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["arrays", "pictures"])
def test_pipes_among_the_data_are_skipped(folder, capsys, kind):
    (folder / "data").mkdir()
    suffix = ".npz" if kind == "arrays" else ".png"
    if kind == "arrays":
        save_data(folder / "data" / "a.npz")
    else:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "data" / "a.png")
    os.mkfifo(folder / "data" / f"b{suffix}")
    (folder / "data" / f"c{suffix}").symlink_to("/dev/zero")
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "data", "--quiet"]) == 0
    err = capsys.readouterr().err
    assert f"data/b{suffix} is a pipe, a socket or a device: skipped" in err
    assert f"data/c{suffix} is a pipe" in err


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_postscript_is_not_run_whatever_its_name(refused, folder, monkeypatch, suffix):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    (folder / "pictures").mkdir()
    (folder / "pictures" / f"a{suffix}").write_bytes(POSTSCRIPT)
    assert f"a{suffix}: cannot be read as an image" in refused("m.onnx", "o.onnx", "--data", "pictures")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "PNG", "JPEG"])
def test_a_picture_of_another_kind_than_its_name_says(folder, kind):
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(random).save(folder / "pictures" / "a.png", format=kind)
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "pictures", "--quiet"]) == 0


# --- tables ---------------------------------------------------------------------------------------


def test_a_table_that_is_none(refused):
    for name, problem in {
        "m.onnx": ": not a calibration table",
        "d.npz": " does not hold calibration statistics",
    }.items():
        assert name + problem in refused("m.onnx", "o.onnx", "--from-table", name)


def test_a_table_that_is_not_there(refused):
    message = refused("m.onnx", "o.onnx", "--from-table", "s.npz")
    assert "s.npz: the table cannot be read: No such file" in message


def test_a_damaged_table(refused):
    options = ["--data", "d.npz", "--save-statistics", "s.npz", "--quiet"]
    assert commands.main(["quantize", "m.onnx", "q.onnx", *options]) == 0
    whole = Path("s.npz").read_bytes()
    index = whole.index(b"PK\x01\x02")  # of the archive: here stands which version of zip it needs
    for damaged in (whole[: len(whole) // 2], whole[: index + 6] + b"\x63" + whole[index + 7 :]):
        Path("s.npz").write_bytes(damaged)
        assert "s.npz" in refused("m.onnx", "o.onnx", "--from-table", "s.npz")


def test_a_table_of_another_model(refused, folder):
    save_model(folder / "n.onnx", TEXT.replace("(x", "(input").replace(" x)", " input)"))
    options = ["--data", "d.npz", "--save-statistics", "s.npz", "--quiet"]
    assert commands.main(["quantize", "m.onnx", "q.onnx", *options]) == 0
    message = refused("n.onnx", "o.onnx", "--from-table", "s.npz")
    assert "the statistics lack tensor 'input'" in message


# --- the output -----------------------------------------------------------------------------------


def test_no_such_directory(refused):
    assert "there is no directory" in refused("m.onnx", "nowhere/o.onnx")


def test_a_directory_as_output(refused, folder):
    (folder / "there").mkdir()
    assert "there: is a directory. Give the name of the file" in refused("m.onnx", "there")


def test_a_pipe_as_output(refused):
    os.mkfifo("pipe")
    assert "pipe: is a device or a pipe" in refused("m.onnx", "pipe")


def test_a_read_only_directory(refused, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    assert "o.onnx: cannot be written: permission denied" in refused("m.onnx", "o.onnx", "--data", "d.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_may_not_be_written(refused, folder):
    (folder / "locked").mkdir(mode=0o500)
    assert "permission denied" in refused("m.onnx", "locked/o.onnx")


def test_the_output_is_the_model(refused, folder):
    (folder / "link.onnx").symlink_to("m.onnx")
    (folder / "hard.onnx").hardlink_to("m.onnx")
    for name in ("m.onnx", "./m.onnx", folder / "m.onnx", "link.onnx", "hard.onnx"):
        assert "would overwrite m.onnx, which is needed" in refused("m.onnx", name)
    assert "would overwrite link.onnx" in refused("link.onnx", "m.onnx")


@pytest.mark.parametrize(
    ("options", "clash"),
    [
        (["--save-statistics", "m.onnx"], "m.onnx"),
        (["--save-statistics", "o.onnx"], "o.onnx"),
        (["--data", "d.npz", "--save-statistics", "./d.npz"], "d.npz"),
        (["--save-config", "m.onnx"], "m.onnx"),
        (["--save-config", "o.onnx"], "o.onnx"),
        (["--save-config", "c", "--save-statistics", "c"], "c"),
    ],
)
def test_nothing_that_is_needed_is_overwritten(refused, options, clash):
    assert f"would overwrite {clash}, which is needed" in refused("m.onnx", "o.onnx", *options)


WRITES = {
    "--report": "report",
    "--save-config": None,
    "--table": "table",
    "--save-statistics": "save_statistics",
}
"""Option -> its name in Python, if there is one."""


@pytest.mark.parametrize("option", ["", *WRITES, "--search-log"])
@pytest.mark.parametrize("read", ["c.yaml", "t.yaml", "link.yaml"])
def test_the_files_of_the_options_are_not_overwritten(refused, folder, option, read):
    (folder / "c.yaml").write_text("target: t.yaml\ndata: d.npz\n")
    (folder / "t.yaml").write_text("base: onnxruntime\n")
    (folder / "link.yaml").symlink_to("c.yaml")
    goal = ("--goal", "sqnr>=1") if option == "--search-log" else ()
    formats = ("--table-format", "json") if option == "--table" else ()
    files = ("o.onnx", option, read) if option else (read,)
    message = refused("m.onnx", *files, *goal, *formats, "--config", "c.yaml")
    assert f"{read}: would overwrite" in message


@pytest.mark.parametrize("read", ["c.yaml", "t.yaml", "m.onnx", "d.npz"])
def test_statistics_do_not_overwrite_what_calibration_reads(refused, folder, read):
    (folder / "c.yaml").write_text("data: d.npz\n")
    (folder / "t.yaml").write_text("base: onnxruntime\n")
    options = ("--config", "c.yaml", "--target", "t.yaml")
    assert f"{read}: would overwrite" in refused("m.onnx", read, *options, command="calibrate")


@pytest.mark.parametrize("read", ["m.onnx", "d.npz"])
def test_a_ranking_overwrites_nothing_that_it_reads(refused, folder, read):
    (folder / "c.yaml").write_text(f"data: d.npz\nsave_statistics: {read}\n")
    assert f"{read}: would overwrite" in refused("m.onnx", "--config", "c.yaml", command="sensitivity")


@pytest.mark.parametrize("read", ["t.yaml", "q.onnx", "d.npz"])
def test_requantize_overwrites_nothing_that_it_reads(refused, folder, read):
    (folder / "t.yaml").write_text("base: onnxruntime\n")
    assert commands.main(["quantize", "m.onnx", "q.onnx", "--data", "d.npz", "--quiet"]) == 0
    options = ("--target", "t.yaml", "--data", "d.npz", "--report", read)
    assert f"{read}: would overwrite" in refused("q.onnx", "o.onnx", *options, command="requantize")


@pytest.mark.parametrize("output", ["weights.data", "weights"])
def test_the_external_data_of_the_model_is_not_overwritten(refused, folder, output):
    ir.save(parse(TEXT), folder / "big.onnx", external_data="weights.data", size_threshold_bytes=0)
    before = (folder / "weights.data").read_bytes()
    assert "weights.data, which is needed" in refused("big.onnx", output)
    assert (folder / "weights.data").read_bytes() == before


def test_the_options_do_not_overwrite_the_weights(refused, folder):
    ir.save(parse(TEXT), folder / "big.onnx", external_data="weights.data", size_threshold_bytes=0)
    assert "would overwrite" in refused("big.onnx", "o.onnx", "--save-config", "weights.data")


def test_a_file_of_the_data_directory_is_not_overwritten(refused, folder):
    (folder / "samples").mkdir()
    save_data(folder / "samples" / "0.npz")
    options = ("--data", "samples", "--save-statistics", "samples/0.npz")
    assert "would overwrite samples, which is needed" in refused("m.onnx", "o.onnx", *options)


def test_a_table_leaves_nothing_to_save(refused):
    options = ("--from-table", "t.npz", "--save-statistics", "s.npz")
    assert "no statistics to save" in refused("m.onnx", "o.onnx", *options, code=2)


def test_a_quantized_function_body(refused, folder):
    body = """<domain: "local", opset_import: ["" : 13]> f (x) => (y) {
        s = Constant <value_float = 0.1> () q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)
    }"""
    text = "g (float[N] x) => (float[N] y) { y = local.f (x) }"
    ir.save(parse(text, functions=body), folder / "f.onnx")
    assert "already quantized" in refused("f.onnx", "o.onnx")


@pytest.mark.parametrize("option", ["--save-config", "--save-statistics"])
def test_what_cannot_be_saved_is_found_before_the_work(refused, monkeypatch, option):
    monkeypatch.setattr("onnxq.pipelines.static.prepare", None)
    assert "there is no directory" in refused("m.onnx", "o.onnx", option, "nowhere/file")


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(refused, monkeypatch):
    monkeypatch.setattr(files, "save_model", full)
    assert "o.onnx: cannot be written: the disk is full" in refused("m.onnx", "o.onnx", "--data", "d.npz")


def with_files_of(size, *arguments):
    """Run a command in a process where no file may be larger than ``size`` bytes."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    return python("-m", "onnxq.cli", *arguments, preexec_fn=limit)


def test_no_room_half_way(folder):
    """The system itself stops the writing in the middle of the file."""
    save_model(folder / "m.onnx", TEXT.replace("float[8", "float[2000"))
    save_data(folder / "d.npz", count=2)
    before = state(folder)
    done = with_files_of(20_000, "quantize", "m.onnx", "o.onnx", "--data", "d.npz")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr == f"error: {folder / 'o.onnx'}: cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert state(folder) == before


LATE = {
    "--report": ("r.html", "onnxq.pipelines.report.write.page"),
    "--save-config": ("c.yaml", "yaml.safe_dump"),
    "--table": ("t.json", "onnxq.calibration.tables.table_files.encode"),
}
"""Option -> a file that is made beside the model, and what makes it."""


@pytest.mark.parametrize("option", LATE)
@pytest.mark.parametrize("mode", [("--data", "d.npz"), ("--mode", "dynamic", "--include", "op:Conv")])
def test_if_one_file_cannot_be_made_none_is_written(refused, monkeypatch, option, mode):
    names = [name for name in LATE if name != "--table" or "dynamic" not in mode]
    monkeypatch.setattr(LATE[option if option in names else names[0]][1], full)
    options = [part for name in names for part in (name, LATE[name][0])]
    assert "No space left" in refused("m.onnx", "o.onnx", *mode, *options)


@pytest.mark.parametrize("command", ["quantize", "requantize"])
def test_a_report_that_does_not_fit_leaves_the_old_model(folder, command):
    """The system stops the writing of the larger file, the report."""
    assert commands.main(["quantize", "m.onnx", "q.onnx", "--data", "d.npz", "--quiet"]) == 0
    before = state(folder)
    source = "q.onnx" if command == "requantize" else "m.onnx"
    done = with_files_of(12_000, command, source, "o.onnx", "--data", "d.npz", "--report", "r.html")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert "r.html: the report cannot be written" in done.stderr
    assert state(folder) == before


@pytest.mark.parametrize("option", ["", "--report", "--save-config", "--save-statistics", "--table"])
def test_a_link_that_leads_to_itself(refused, folder, option):
    (folder / "loop.json").symlink_to("loop.json")
    arguments = ("o.onnx", option, "loop.json") if option else ("loop.json",)
    message = refused("m.onnx", *arguments, "--data", "d.npz")
    assert "loop.json: cannot be written: it is a link that leads to itself" in message


def test_a_model_that_the_runtime_refuses_is_not_written(refused, monkeypatch):
    def spoiled(original, plan):
        copy = original.clone()
        copy.graph.node(0).domain = "no.such.domain"
        copy.graph.opset_imports["no.such.domain"] = 1
        return copy

    monkeypatch.setattr("onnxq.algorithms.draft.insert_qdq", spoiled)
    assert "ONNX Runtime cannot load" in refused("m.onnx", "o.onnx", "--data", "d.npz")


# --- compare, inspect -----------------------------------------------------------------------------


def test_compare_what_cannot_be_compared(refused, folder):
    save_model(folder / "n.onnx", "g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }")
    message = refused("m.onnx", "n.onnx", "--data", "d.npz", command="compare")
    assert "the models have different inputs and cannot be compared" in message
    assert "missing.onnx: no such file" in refused("m.onnx", "missing.onnx", command="compare")
    assert "missing.onnx: no such file" in refused("missing.onnx", "m.onnx", command="compare")
    assert "missing: no such" in refused("m.onnx", "m.onnx", "--data", "missing", command="compare")


def test_inspect_what_cannot_be_inspected(refused):
    assert "missing.onnx: no such file" in refused("missing.onnx", command="inspect")
    assert "d.npz: not an ONNX model" in refused("d.npz", command="inspect", code=FAILED)
    assert "unknown target" in refused("m.onnx", "--target", "abacus", command="inspect", code=WRONG_USAGE)


# --- and in Python --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (onnxq.ModelError, {"model": "missing.onnx"}),
        (onnxq.ModelError, {"output": "m.onnx"}),
        (onnxq.ModelError, {"output": "nowhere/o.onnx"}),
        (onnxq.CalibrationError, {"data": "missing"}),
        (onnxq.TargetError, {"config": onnxq.QuantConfig(target="abacus")}),
    ],
)
def test_the_errors_in_python(folder, kind, arguments):
    before = state(folder)
    with pytest.raises(kind) as caught:
        onnxq.quantize_static(**{"model": "m.onnx", "output": "o.onnx"} | arguments)
    assert isinstance(caught.value, onnxq.OnnxqError)
    assert state(folder) == before


@pytest.mark.parametrize("option", ["output", "report", "table", "save_statistics"])
@pytest.mark.parametrize("read", ["c.yaml", "t.yaml", "d.npz"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_python_does_not_overwrite_what_it_reads(folder, option, read, mode):
    (folder / "c.yaml").write_text(f"target: t.yaml\nmode: {mode}\n")
    (folder / "t.yaml").write_text("base: onnxruntime\n")
    files = {} if option == "output" else {option: read}
    if mode == "dynamic" and option in ("table", "save_statistics"):
        return
    formats = {"table_format": "json"} if option == "table" else {}
    config = onnxq.QuantConfig.load(Path("c.yaml"), **files, **formats)
    quantize = onnxq.quantize_static if mode == "static" else onnxq.quantize_dynamic
    before = state(folder)
    with pytest.raises(onnxq.ModelError, match=f"{read}: would overwrite"):
        quantize("m.onnx", read if option == "output" else "o.onnx", data="d.npz", config=config)
    assert state(folder) == before


@pytest.mark.parametrize("option", ["output", "report"])
@pytest.mark.parametrize("read", [onnx.load, ir.load])
def test_the_weights_of_a_model_in_memory_are_not_overwritten(folder, option, read):
    ir.save(parse(TEXT), folder / "big.onnx", external_data="weights.data", size_threshold_bytes=0)
    model = read("big.onnx", load_external_data=False) if read is onnx.load else read("big.onnx")
    before = state(folder)
    output, files = ("weights.data", {}) if option == "output" else ("o.onnx", {"report": "weights.data"})
    with pytest.raises(onnxq.ModelError, match=r"weights\.data: would overwrite"):
        onnxq.quantize_static(model, output, "d.npz", onnxq.QuantConfig(**files))
    assert state(folder) == before


def test_an_output_from_before_is_replaced_by_a_good_one(folder):
    assert commands.main(["quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--quiet"]) == 0
    onnx.checker.check_model("o.onnx")
