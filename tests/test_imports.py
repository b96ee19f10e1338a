"""The floors of docs/architecture.md: a module imports floors below its own, and nothing above or beside."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("calibrators", "onnxq")

FLOORS = (
    {"calibrators"},
    {
        "onnxq.errors",
        "onnxq.goal",
        "onnxq.plan",
        "onnxq.numerics",
        "onnxq.config",
        "onnxq.model",
        "onnxq.graph",
        "onnxq.names",
        "onnxq.operators",
        "onnxq.override",
        "onnxq.progress",
        "onnxq.scratch",
        "onnxq.fill_channels",
        "onnxq.norm_sums",
        "onnxq.weight_scale",
        "onnxq.yaml_files",
    },
    {
        "onnxq.targets",
        "onnxq.passes",
        "onnxq.tables",
        "onnxq.report",
    },
    {"onnxq.planner", "onnxq.ranges", "onnxq.samples", "onnxq.insert", "onnxq.verify"},
    {
        "onnxq.adoption",
        "onnxq.algorithms",
        "onnxq.autotune",
        "onnxq.calibration",
        "onnxq.compare",
        "onnxq.conversion",
        "onnxq.correction",
        "onnxq.dynamic",
        "onnxq.evaluate",
        "onnxq.guards",
        "onnxq.inspection",
        "onnxq.loop",
        "onnxq.pipeline",
        "onnxq.prepare",
        "onnxq.race",
        "onnxq.ranking",
        "onnxq.reach",
        "onnxq.result",
        "onnxq.speed",
        "onnxq.trial",
        "onnxq.verification",
    },
    {
        "onnxq.quantize",
        "onnxq.cli",
        "onnxq.arguments",
        "onnxq.endings",
        "onnxq.display",
        "onnxq.outline",
        "onnxq.static",
        "onnxq.torch",
    },
    {"onnxq"},
)
"""From the ground up. A unit is a module, or a whole subpackage."""

SIDEWAYS = {1, 4, 5}
"""Floors (counted from 0) whose units may import each other, as long as there is no circle."""

COMMAND_LINE = {"onnxq.quantize", "onnxq.cli", "onnxq.endings"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that ``name`` imports anywhere, inside functions too; ours are named in full."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def unit(module: str) -> str:
    """The unit of FLOORS that a module belongs to: its first name after ``onnxq``."""
    parts = module.split(".")
    return parts[0] if parts[0] == "calibrators" else ".".join(parts[:2])


def floor(module: str) -> int:
    """The floor of a module."""
    for number, units in enumerate(FLOORS):
        if unit(module) in units:
            return number
    raise AssertionError(f"{module} stands on no floor: give it one in {Path(__file__).name}")


def arrows(known: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Each import of one of our modules by another, as (importer, imported)."""
    for name, path in known.items():
        for target in imports(name, path, known):
            if target.split(".")[0] in PACKAGES and target != name:
                yield name, target


def wrong(importer: str, imported: str) -> bool:
    """Is this arrow against the floors?"""
    here, there = floor(importer), floor(imported)
    if unit(importer) == unit(imported):
        return False
    return there > here or (there == here and here not in SIDEWAYS)


def circle(known: dict[str, Path]) -> list[str]:
    """The modules of one import circle, or nothing."""
    graph: dict[str, set[str]] = {}
    for importer, imported in arrows(known):
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: everything outside functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            waiting.append(child)
            if isinstance(child, ast.stmt):
                yield child


def imported_names(node: ast.AST) -> set[str]:
    """The top names (``torch`` of ``torch.nn``) that an import statement brings in."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.split(".")[0]}
    return set()


def test_no_arrow_goes_up_or_sideways() -> None:
    assert [arrow for arrow in arrows(MODULES) if wrong(*arrow)] == []


def test_no_circle() -> None:
    assert circle(MODULES) == []


def test_every_import_of_ours_exists() -> None:
    assert [arrow for arrow in arrows(MODULES) if arrow[1] not in MODULES] == []


def test_calibrators_stand_alone() -> None:
    below = [name for name in MODULES if unit(name) == "calibrators"]
    assert below
    assert [
        n for n in below if any(i.split(".")[0] == "onnxq" for i in imports(n, MODULES[n], MODULES))
    ] == []


@pytest.mark.parametrize("name", MODULES)
def test_torch_stays_behind_its_door(name: str) -> None:
    if unit(name) == "onnxq.torch":
        return
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    lazily = unit(name) == "onnxq.algorithms"
    nodes = top_level(tree) if lazily else ast.walk(tree)
    assert [node.lineno for node in nodes if {"torch", "torchao"} & imported_names(node)] == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - COMMAND_LINE))
def test_the_library_logs_and_never_prints(name: str) -> None:
    calls = (n for n in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if isinstance(n, ast.Call))
    assert [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"] == []


def test_the_rules_see_a_wrong_arrow_and_a_circle(tmp_path: Path) -> None:
    files = {
        "onnxq/plan.py": "def late():\n    from onnxq import planner\n",
        "onnxq/planner.py": "from onnxq.plan import QuantPlan\n",
        "onnxq/passes/fold.py": "from ..targets import rules\n",
        "onnxq/targets/rules.py": "import calibrators\n",
        "onnxq/targets/__init__.py": "from . import rules\n",
        "calibrators/__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    known = modules(tmp_path)
    assert sorted(arrow for arrow in arrows(known) if wrong(*arrow)) == [
        ("onnxq.passes.fold", "onnxq.targets.rules"),
        ("onnxq.plan", "onnxq.planner"),
    ]
    assert set(circle(known)) == {"onnxq.plan", "onnxq.planner"}


HELP = """
import json, runpy, sys
sys.argv = ["onnxq.quantize", "--help"]
try:
    runpy.run_module("onnxq.quantize", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    """Help must come at once, so the command line may import the big libraries only when it works."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "--data" in done.stdout
    assert {"torch", "onnxruntime", "onnx", "onnx_ir"} & set(
        json.loads(done.stderr.splitlines()[-1])
    ) == set()
