"""The page about targets is true to the tables, and the example on it works."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from onnxq.targets import TARGETS
from onnxq.targets.docs_page import EXAMPLE, page
from onnxq.targets.lookup import get_target
from onnxq.targets.target import OpRule, Target

DOCUMENT = Path(__file__).parents[2] / "docs" / "targets.md"


def test_the_document_is_the_page():
    assert DOCUMENT.read_text(encoding="utf-8") == page(TARGETS.values()), (
        "python -m onnxq.targets > docs/targets.md"
    )


def test_the_command_prints_it():
    printed = subprocess.run(
        [sys.executable, "-m", "onnxq.targets"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == page(TARGETS.values())


def test_every_target_and_field_is_told():
    text = page(TARGETS.values())
    assert all(f"\n## {name}\n" in text for name in TARGETS)
    assert all(target.about and target.about in " ".join(text.split()) for target in TARGETS.values())
    told = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert {field.name for field in (*fields(Target), *fields(OpRule))} - {"name"} <= told


@pytest.mark.parametrize("name", TARGETS)
def test_every_operator_stands_in_its_targets_table(name):
    table = page([TARGETS[name]]).split(f"\n## {name}\n")[1].split("\n## ")[0]
    named = {
        op
        for line in table.splitlines()
        if line.startswith("| ")
        for op in line.split("|")[1].strip().split(", ")
    }
    assert TARGETS[name].rules.keys() <= named


def test_the_example_does_what_it_says(tmp_path):
    path = tmp_path / "my-chip.yaml"
    path.write_text(EXAMPLE)
    target, base = get_target(str(path)), TARGETS["openvino"]
    assert target.weight.limits == (-63, 63)
    assert "ConvTranspose" not in target.rules
    assert not target.rules["Gemm"].per_channel
    assert target.rules["Gemm"].attributes == base.rules["Gemm"].attributes
    assert target.rules["Sigmoid"].output_range == (0.0, 1.0)
    assert target.rules["Conv"] == base.rules["Conv"]
    assert target.activation == base.activation
