"""``onnxq doctor``: what this machine has, and which targets can be checked on it, as tables or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from onnxq.cli.tables.render import print_table
from onnxq.cli.terminal import print_json
from onnxq.targets import TARGETS
from onnxq.verify.machine import Machine, Suitability, examine, suitability

_SATURATES: Mapping[bool, str] = {
    True: "they saturate: accuracy of u8 x s8 products is lower here; --target onnxruntime-avx2 prevents it",
    False: "they are exact",
}


def show(version: str, *, as_json: bool) -> None:
    """Print what this machine has; ``version`` is that of onnxq."""
    machine = examine()
    targets = [suitability(target, machine) for target in TARGETS.values()]
    if as_json:
        print_json({"onnxq": version, **asdict(machine), "targets": [asdict(one) for one in targets]})
        return
    table = Table(title=f"onnxq {version} on this machine", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(machine):
        table.add_row(*row)
    print_table(table)
    print_table(_target_table(targets))


def _rows(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "Python", machine.python
    yield "system", machine.system
    yield "processor", f"{machine.processor}, {machine.cores} logical cores"
    yield "has", _named(machine.features, True)
    yield "has not", _named(machine.features, False)
    if unknown := _named(machine.features, None):
        yield "unknown", f"{unknown} (cannot be asked on this system)"
    yield "8-bit kernels", _SATURATES[machine.saturating]
    yield "providers", ", ".join(machine.providers)
    yield "NVIDIA GPU", ", ".join(machine.gpus) or "none"
    for name, version in machine.runtimes.items():
        yield name, version or f"not installed: pip install 'onnxq[{name}]'"
    yield "packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items() if version)
    yield "missing", ", ".join(name for name, version in machine.packages.items() if version is None)


def _named(features: Mapping[str, bool | None], value: bool | None) -> str:
    return ", ".join(name for name, has in features.items() if has is value)


def _target_table(targets: Sequence[Suitability]) -> Table:
    table = Table(title="targets", title_justify="left")
    for column in ("target", "is for", "onnxq verify, here"):
        table.add_column(column, overflow="fold")
    for one in targets:
        table.add_row(one.target, one.about, Text(one.here, "green" if one.checked else "yellow"))
    return table
