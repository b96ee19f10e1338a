"""Models with random changes: a command refuses them with one line, or writes whole files.

`scripts/fuzz` does this with thousands, each in a process of its own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fuzz
import onnx
import pytest
from fuzz_models import fuzz_models
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from onnxq.cli import commands

BASES = fuzz_models()


@pytest.fixture(scope="module")
def integers(tmp_path_factory) -> dict[str, onnx.ModelProto]:
    """The base models, quantized."""
    found = {}
    for name, base in BASES.items():
        folder = tmp_path_factory.mktemp(name)
        fuzz.write_data(base, folder / "data")
        fuzz.write(base.model, folder / "model.onnx")
        code, _ = _run((*fuzz.COMMANDS["quantize"], "--verify", "off"), folder)
        assert code == 0, name
        found[name] = onnx.load(folder / "out.onnx")
    return found


def _run(arguments: tuple[str, ...], folder: Path) -> tuple[int, frozenset[str]]:
    """Run a command in this process: its exit code, and the files that it left."""
    before, place = fuzz.files_in(folder), Path.cwd()
    os.chdir(folder)
    try:
        code = commands.main(list(arguments))
    finally:
        os.chdir(place)
    return code, fuzz.files_in(folder) - before


def _ends(path: Path) -> bool:
    """Whether the loops of a model have a trip count: one without may run forever, and so would the test."""
    try:
        nodes = onnx.load(path, load_external_data=False).graph.node
    except DecodeError:
        return True
    return all(node.input[0] for node in nodes if node.op_type == "Loop" and node.input)


@pytest.mark.parametrize("command", fuzz.COMMANDS)
@settings(max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(BASES)), random=st.randoms(note_method_calls=False))
def test_a_changed_model_is_refused_or_taken(command, name, random, integers, tmp_path, capsys) -> None:
    folder = tmp_path / "attempt"
    shutil.rmtree(folder, ignore_errors=True)
    fuzz.attempt(BASES[name], integers[name], random, folder)
    assume(all(map(_ends, folder.glob("*.onnx"))))
    capsys.readouterr()
    code, left = _run(fuzz.COMMANDS[command], folder)
    end = fuzz.End(code, seconds=0.0, megabytes=0.0, stderr=capsys.readouterr().err, files=left)
    assert end.fault is None
