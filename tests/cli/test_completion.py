"""Completion as shells ask for it, and the doctor."""

import json
import sys
from pathlib import Path

import pytest
from cli import python

from onnxq.cli import commands
from onnxq.cli.commands import _COMMANDS
from onnxq.cli.completion import completing_parser
from onnxq.targets import TARGETS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(capsys, shell):
    pytest.importorskip("argcomplete")
    assert commands.main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert "onnxq" in out
    assert "_ARGCOMPLETE" in out
    assert err == ""


def test_another_shell_is_refused(capsys):
    assert commands.main(["completion", "fsh"]) == 2
    assert "valid shells: bash, zsh, fish; did you mean 'fish'?" in capsys.readouterr().err


def test_a_missing_package_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert commands.main(["completion", "bash"]) == 2
    assert "pip install argcomplete" in capsys.readouterr().err


def values(command, option, prefix):
    """What the value of an option may become."""
    kinds = next(action for action in completing_parser(_COMMANDS)._actions if action.dest == "==SUPPRESS==")
    actions = {action.dest: action for action in kinds.choices[command]._actions}
    completer = getattr(actions[option], "completer", None)
    return None if completer is None else list(completer(prefix=prefix))


@pytest.mark.parametrize(
    ("command", "option", "prefix", "found"),
    [
        ("quantize", "method", "en", ["entropy"]),
        ("quantize", "weight", "uint", ["uint8", "uint4", "uint2"]),
        ("quantize", "correct", "bias,r", ["bias,ranges", "bias,rounding"]),
        ("quantize", "preprocess", "im", ["imagenet"]),
        ("quantize", "provider", "CPU", ["CPUExecutionProvider"]),
        ("quantize", "format", "", ["auto", "matmulnbits", "dequantize"]),
        ("table", "format", "mqbench-s", ["mqbench-snpe"]),
        ("verify", "target", "", list(TARGETS)),
        ("quantize", "samples", "", []),
        ("quantize", "data", "", None),
        ("quantize", "config", "", None),
        ("quantize", "model", "", None),
        ("completion", "shell", "z", ["zsh"]),
    ],
)
def test_values_are_offered_and_files_where_files_are_meant(command, option, prefix, found):
    assert values(command, option, prefix) == found


def test_the_command_answers_a_shell(tmp_path):
    argcomplete = pytest.importorskip("argcomplete")
    line, answer = "onnxq quantize --target tensorrt-f", tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    code = f"import sys; sys.path.append({str(Path(argcomplete.__file__).parents[1])!r})\n"
    code += f"import os; os.environ.update({asked | {'_ARGCOMPLETE_STDOUT_FILENAME': str(answer)}})\n"
    done = python("-c", f"{code}from onnxq.cli import main; main()", cwd=tmp_path)
    assert done.stdout == ""
    assert answer.read_text("utf-8").strip() == "tensorrt-fp8"


def test_the_doctor_tells_of_the_machine_and_of_every_target(capsys):
    assert commands.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "CPUExecutionProvider" in out
    assert all(name in out for name in TARGETS)
    assert commands.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["target"] for one in found["targets"]] == list(TARGETS)
    assert found["runtimes"]["onnxruntime"] == found["packages"]["onnxruntime"]
    assert {"AVX2", "VNNI", "AMX", "NEON"} <= set(found["features"])
