"""The commands of README.md and docs/ run as they stand, page by page, with a small model and a few samples."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import parse

from onnxq.cli import commands
from onnxq.graph.files import write

ROOT = Path(__file__).parents[2]

STARTS = {"onnxq ": commands.main, "python -m onnxq.quantize ": commands.quantize}
"""How commands begin, and what runs them."""

PLACEHOLDERS = {
    "MODEL": "model.onnx",
    "OUTPUT": "out.onnx",
    "PATH": "samples/",
    "STATISTICS_OR_TABLE": "calibration.cache",
    "OUT": "table.json",
}
"""What stands for a word in capitals."""

NAMES = {"--format": "json", "--target": "onnxruntime"}
"""What stands for NAME behind an option."""

MADE = {
    " half.onnx": ("convert", "model.onnx"),
    " from_elsewhere.onnx": ("quantize", "model.onnx"),
}
"""Files that pages read without saying who makes them, and the commands that do."""

NETWORK = """g (float[N, 3, 8, 8] input) => (float[N, 10] scores)
<float[8, 3, 3, 3] w, float[1, 64, 8] wl, float[1, 64, 16] rl, float[16, 64] m1, float[64, 64] m2,
 float[16, 64] table, float[64, 10] last, int64[1] first = {0}, int64[2] ones = {2, 3}> {
    c = Conv(input, w)
    r = Relu(c)
    p = ReduceMean <keepdims = 0, axes = [2, 3]> (r)
    s = Unsqueeze(p, first)
    y, h = LSTM <hidden_size = 16> (s, wl, rl)
    f = Squeeze(h, first)
    m = MatMul(f, m1)
    i = ArgMax <axis = 1, keepdims = 0> (f)
    e = Gather(table, i)
    a = Add(m, e)
    n = MatMul(a, m2)
    scores = MatMul(n, last)
}"""

LANGUAGE_MODEL = """g (int64[N, S] input) => (float[N, S, 64] logits)
<float[64, 64] table, float[64, 64] last> {
    e = Gather(table, input)
    logits = MatMul(e, last)
}"""
"""A model of the next token for the page about such: behind each id comes the one that is larger by 1."""

DECODER = """g (float[N, S, 16] x, float[N, P, 16] keys) => (float[N, S, 16] y, float[N, T, 16] all_keys)
<float[16, 16] w> {
    k = MatMul(x, w)
    all_keys = Concat <axis = 1> (keys, k)
    t = Transpose <perm = [0, 2, 1]> (all_keys)
    s = MatMul(x, t)
    p = Softmax(s)
    y = MatMul(p, all_keys)
}"""

FACTORY = """import torch


def factory(width: int = 4):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU()), torch.randn(1, 3, 8, 8)
"""


def documented(page: Path) -> list[str]:
    """Find the commands in the blocks of a page, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = (line for language, block in blocks if not language for line in block.splitlines())
    return [line for line in lines if line.startswith(tuple(STARTS)) and "COMMAND" not in line]


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if documented(page)]


def arguments(command: str) -> list[str]:
    """Split a command into its arguments; options in brackets are left out, words in capitals replaced."""
    words = shlex.split(re.sub(r"\[[^\]]*\]", "", command), comments=True)
    before = [None, *words]
    return [
        NAMES[str(last)] if word == "NAME" else PLACEHOLDERS.get(word, word)
        for last, word in zip(before, words, strict=False)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the commands read."""
    rng = np.random.default_rng(0)
    model = parse(NETWORK)
    for name in ("model.onnx", "in.onnx"):
        write(model, tmp_path / name)
    for name in ("samples", "pictures"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "a.npz", input=rng.normal(size=(12, 3, 8, 8)).astype(np.float32))
    (tmp_path / "package").mkdir()
    for path in (tmp_path / "package" / "module.py", tmp_path / "file.py"):
        path.write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def make_language_model(folder):
    """Replace the model and its samples by a language model and ids."""
    table = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    last = 0.2 * np.roll(table, 1, axis=0).T
    write(parse(LANGUAGE_MODEL, table=table, last=last), folder / "model.onnx")
    ids = (np.arange(12)[:, None] * 5 + np.arange(16)) % 64
    np.savez(folder / "samples" / "a.npz", input=ids.astype(np.int64))
    write(parse(DECODER), folder / "decoder.onnx")
    (folder / "turns").mkdir()
    x = np.random.default_rng(2).normal(size=(12, 7, 16)).astype(np.float32)
    np.savez(folder / "turns" / "a.npz", x=x, keys=np.zeros((12, 0, 16), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_commands_of_a_page_run(page, folder, capsys):
    if page.stem == "language-models":
        make_language_model(folder)
    for name, command in MADE.items():
        if any(name in line for line in documented(page)):
            assert commands.main([*command, name.strip()]) == 0
    for command in documented(page):
        start = next(start for start in STARTS if command.startswith(start))
        given = arguments(command.removeprefix(start))
        assert STARTS[start](given) == 0, f"{command}\n{capsys.readouterr().err}"
    assert all(onnx.checker.check_model(path) is None for path in folder.glob("*.onnx"))


def test_commands_are_found():
    assert {page.stem for page in PAGES} >= {"README", "accuracy", "dynamic", "tables", "verify"}
    assert arguments("table STATISTICS_OR_TABLE OUT --format NAME [--method NAME]  # to another format") == [
        *("table", "calibration.cache", "table.json", "--format", "json")
    ]
