"""The floors of docs/architecture.md: a module imports floors below its own, and nothing above or beside."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("calibrators", "onnxq")

FLOORS = (
    {"calibrators"},
    {"onnxq.core"},
    {"onnxq.graph", "onnxq.targets"},
    {"onnxq.calibration", "onnxq.planner", "onnxq.verify"},
    {"onnxq.algorithms"},
    {"onnxq.pipelines"},
    {"onnxq.torch", "onnxq.distributed"},
    {"onnxq.api", "onnxq.cli"},
    {"onnxq", "onnxq.quantize"},
)
"""From the ground up, folders but for the two modules at the top."""

COMMAND_LINE = {"onnxq.quantize", "onnxq.cli.__main__", "onnxq.cli.exit_codes"}

TOP = {
    *("__init__.py", "quantize.py", "api.py", "py.typed"),
    *(
        "cli",
        "torch",
        "distributed",
        "pipelines",
        "algorithms",
        "calibration",
        "planner",
        "verify",
        "graph",
        "targets",
        "core",
    ),
}
"""All that lies directly in ``onnxq/``."""

MOST_MODULES, MOST_FOLDERS = 15, 6
FEWEST_LINES, MOST_LINES, MOST_LINES_OF_INIT = 40, 400, 60

LAZY = {"onnxq", "onnxq.torch"}
"""Packages whose names are imported when first asked for: their ``__init__`` has the code that does it."""

ORDERED = {"onnxq.graph.passes"}
"""The one package whose ``__init__`` does work: it is the order of the passes."""

PLUG_INS = (
    *("calibrators.methods", "onnxq.calibration.tables", "onnxq.targets"),
    *("onnxq.pipelines.dynamic", "onnxq.pipelines.report.sections"),
    *("onnxq.verify.workers", "onnxq.verify.metrics"),
)
"""Folders with one plug-in a file: a method, a format, a target, an operator, a section."""

SHORT = {
    *("onnxq.quantize", "onnxq.cli.__main__", "onnxq.targets.__main__"),
    *(
        "onnxq.core.errors",
        "onnxq.core.parallel",
        "onnxq.core.progress",
        "calibrators.errors",
        "calibrators.grid",
        "calibrators.atomic",
    ),
}
"""Entry points, and values that several folders share."""

TWICE = {
    *("__init__", "__main__", "context", "acceptance", "onnxruntime", "tensorrt", "openvino", "qualcomm"),
    *("goal", "plan", "calibration", "pipeline"),
}
"""Names that several modules may have: runtimes, sections of the report, what layout and context call so."""


MANY_PARAMETERS = {
    "onnxq.api.quantize_static": "public",
    "onnxq.api.quantize_dynamic": "public",
    "onnxq.api.calibrate": "public",
    "onnxq.api.convert": "public",
    "onnxq.api.quantize_weights": "public",
    "onnxq.pipelines.static.quantize_static": "public",
    "onnxq.torch.exporting.export": "public",
    "onnxq.distributed.datasets.calibrate_dataset": "public",
    "onnxq.torch.qat.workflow.prepare_qat": "public",
    "calibrators.collect.Collector.__init__": "public",
    "calibrators.session.open_session": "all sessions are opened here, and every setting has a name",
    "calibrators.statistics.tensor.TensorStatistics.update": "the facts of one batch, by keyword",
    "calibrators.statistics.collection.Statistics.__init__": "the facts of one calibration run, by keyword",
    "onnxq.torch.qat.fake_quantize.FakeQuantize.__init__": "the state of a module, by keyword",
    "onnxq.torch.qat.fake_quantize._Round.forward": "autograd takes each tensor as an argument",
}
"""Functions with more than five parameters: public entry points, and others with the reason."""


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
    return there >= here


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


def is_constant(statement: ast.stmt) -> bool:
    """Whether an assignment in an ``__init__`` is ``__all__`` or a constant."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return bool(names) and all(name == "__all__" or name.strip("_")[:1].isupper() for name in names)


def logic(path: Path) -> list[int]:
    """The lines of an ``__init__`` that are neither docstring, import nor constant."""
    allowed = (ast.Import, ast.ImportFrom)
    return [
        statement.lineno
        for statement in ast.parse(path.read_text("utf-8")).body
        if not isinstance(statement, allowed)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        and not is_constant(statement)
    ]


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def long_signatures(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield the full names of the functions with more than five parameters, ``self`` aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from long_signatures(f"{name}.{node.name}", node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
            if len([each for each in names if each not in ("self", "cls")]) > 5:
                yield f"{name}.{node.name}"


def folders() -> list[Path]:
    """Every folder with modules."""
    return sorted({path.parent for path in MODULES.values()})


def test_no_arrow_goes_up_or_sideways() -> None:
    assert [arrow for arrow in arrows(MODULES) if wrong(*arrow)] == []


def test_no_circle() -> None:
    assert circle(MODULES) == []


def test_the_top_is_what_the_story_names() -> None:
    found = {path.name for path in (ROOT / "onnxq").iterdir() if path.name != "__pycache__"}
    assert found == TOP


@pytest.mark.parametrize("folder", folders(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_can_be_held_in_mind(folder: Path) -> None:
    inside = [path for path in folder.iterdir() if path.is_dir() and path in folders()]
    assert len(list(folder.glob("*.py"))) <= MOST_MODULES
    assert len(inside) <= MOST_FOLDERS or folder == ROOT / "onnxq"


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_an_init_has_no_logic(name: str) -> None:
    assert name in ORDERED or lines(MODULES[name]) <= MOST_LINES_OF_INIT or name in LAZY
    assert name in LAZY | ORDERED or logic(MODULES[name]) == []


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name != "__init__.py"])
def test_a_file_holds_one_idea(name: str) -> None:
    assert lines(MODULES[name]) <= MOST_LINES
    assert lines(MODULES[name]) >= FEWEST_LINES or name in SHORT or name.startswith(PLUG_INS)


def test_functions_have_at_most_five_parameters() -> None:
    trees = ((name, ast.parse(path.read_text("utf-8"))) for name, path in MODULES.items())
    assert {found for name, tree in trees for found in long_signatures(name, tree)} == set(MANY_PARAMETERS)


def test_the_rules_see_a_long_signature() -> None:
    text = "class A:\n def f(self, a, b, c, d, e): ...\n def g(self, a, b, c, d, *, e, f): ...\ndef h(a, *b, **c): ..."
    assert list(long_signatures("m", ast.parse(text))) == ["m.A.g"]


def test_a_name_is_used_once() -> None:
    stems = Counter(path.stem for name, path in MODULES.items() if name.startswith("onnxq"))
    assert [stem for stem, count in stems.items() if count > 1 and stem not in TWICE] == []


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
        "onnxq/core/plan.py": "def late():\n    from onnxq.planner import planner\n",
        "onnxq/planner/planner.py": "from onnxq.core.plan import QuantPlan\n",
        "onnxq/graph/fold.py": "from ..targets import rules\n",
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
        ("onnxq.core.plan", "onnxq.planner.planner"),
        ("onnxq.graph.fold", "onnxq.targets.rules"),
    ]
    assert set(circle(known)) == {"onnxq.core.plan", "onnxq.planner.planner"}


def test_the_rules_see_logic_in_an_init(tmp_path: Path) -> None:
    file = tmp_path / "__init__.py"
    file.write_text('"""Doc."""\nimport os\nTARGETS = {}\n__all__ = []\ndef f(): ...\nname = 1\n', "utf-8")
    assert logic(file) == [5, 6]


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
