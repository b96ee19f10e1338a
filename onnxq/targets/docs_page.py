"""The page of the documentation about targets, made of the tables: ``docs/targets.md``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from textwrap import fill

from onnxq.core.plan import QuantSpec
from onnxq.targets.target import (
    TYPES,
    BiasStyle,
    Blocks,
    Choice,
    Ends,
    FloatInputs,
    OpRule,
    Output,
    Role,
    Scalar,
    Storage,
    Target,
)

EXAMPLE = """\
# my-chip.yaml: as OpenVINO, for a chip of its own
base: openvino
about: Chip 7, which adds up in 16 bits and has a kernel for Sigmoid.
weight: {reduce_bits: 1}             # 7 bits, so that sums do not saturate
rules:
  ConvTranspose: null                # no integer kernel: kept in float
  Gemm: {per_channel: false}         # one scale for all its weights
  Sigmoid: {role: link, output: quantized, output_range: [0.0, 1.0]}
"""

_INTRODUCTION = """\
<!-- Made of the tables in onnxq/targets: python -m onnxq.targets > docs/targets.md -->
# Targets

`--target NAME` chooses what the model is quantized for. A target is a table of rules, not code: which
operators are quantized, in which number formats, and where Q/DQ stand so that its runtime fuses them.

- An operator without a rule is kept in float, and the plan says why (`--dry-run`).
- Q is placed after the Relu or Clip that its runtime fuses with the operator before it, never between them.
- What no range suits is kept in float on every target: a Concat of several tensors at the end of the graph,
  such as of boxes and scores, also if it is separated again; attention masks; angles of positions before Sin
  and Cos; normalizations that are written in primitives, which divide by a statistic.
- Every model is run by ONNX Runtime at the end, whatever it is for: Q/DQ models mean the same everywhere.

The *role* of an operator says when it is quantized:

{roles}
and *output* what its output needs so that the integer kernel is used:

{outputs}"""

_OWN = """\
## A target of your own

`--target my-chip.yaml` reads a table from a file. It holds the fields of a target, either all of them or as
changes to a `base`. A mapping changes its base key by key; `null` takes a key away. Names are in small
letters, with hyphens. A field or value that does not exist stops the command with the list of those that do.

```yaml
{example}```

Without a `base`, {required} are needed.
"""

_HEADINGS: Mapping[type, str] = {
    Target: "Fields of the file",
    OpRule: "Fields of a rule, by operator type under `rules`",
    QuantSpec: "Fields of a number format",
    Blocks: "Fields of `blocks`",
    Ends: "Fields of `first_last_formats`",
}


def page(targets: Iterable[Target]) -> str:
    """Build the whole page in Markdown."""
    targets = list(targets)
    required = [f"`{name}`" for name in ("activation", "weight", "bias", "rules")]
    own = _OWN.format(example=EXAMPLE, required=f"{', '.join(required[:-1])} and {required[-1]}")
    introduction = _INTRODUCTION.format(roles=_members(Role), outputs=_members(Output))
    sections = [_section(target, targets[:index]) for index, target in enumerate(targets)]
    parts = (introduction, _overview(targets), *sections, own, *map(_fields, _HEADINGS))
    return "\n".join(parts)


def _overview(targets: Iterable[Target]) -> str:
    """Build the table that compares the targets, one row per target."""
    heads = (
        *("target", "activations", "weights", "per-channel scales", "biases"),
        *("graph outputs", "the rest", "constants"),
    )
    rows = [
        (
            f"`{target.name}`",
            _format(target.activation),
            _format(target.weight),
            _channels(target),
            target.bias.meaning,
            "quantized" if target.quantize_outputs else "float",
            _REST.get(target.float_type, target.float_type),
            target.storage.meaning,
        )
        for target in targets
    ]
    return _table(heads, rows)


_REST = {"keep": "as given"}
"""Float type of what is not quantized -> how the page says it."""


def _section(target: Target, others: Iterable[Target]) -> str:
    """Build the section of one target; ``others`` come before it on the page."""
    lines = [f"## {target.name}", "", _wrapped(target.about), ""]
    lines += [_wrapped(note, "- ") for note in (*target.notes, *_options(target))]
    alike = next((other.name for other in others if other.rules == target.rules), None)
    lines += ["", _rules(target) if alike is None else f"Rules: those of [{alike}](#{alike}).\n"]
    if target.transparent and alike is None:
        names = ", ".join(sorted(target.transparent))
        lines += [_wrapped(f"Q/DQ are moved across {names}: they run in the type of their neighbours."), ""]
    return "\n".join(lines)


def _options(target: Target) -> Iterator[str]:
    """Yield one line per option that has several valid values for this target."""
    if len(target.activation_types) > 1:
        yield f"`--activation` takes {_listed(target.activation_types)}."
    if len({dtype.bitwidth for dtype in target.activation_types}) > 1:
        yield "`--goal` and `--floor` give single nodes wider activations before they keep nodes in float."
    if len(target.weight_types) > 1:
        yield f"`--weight` takes {_listed(target.weight_types)}."
    if target.blocks is not None:
        sizes = ", ".join(map(str, sorted(target.blocks.sizes)))
        yield f"`--block-size` takes {sizes}, with `--weight` {_listed(target.blocks.types)}."
    if target.first_last_formats is not None:
        ends = target.first_last_formats
        yield (
            "The first and the last operator with weights have other formats: activations "
            f"{_format(ends.activation)}, weights {_format(ends.weight)}."
        )


def _rules(target: Target) -> str:
    """Operators that are treated alike share a row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, rule in target.rules.items():
        details = "; ".join(tell(rule) for tell in _DETAILS if tell(rule))
        alike.setdefault((rule.role.value, rule.output.value, details), []).append(name)
    rows = [(", ".join(names), *cells) for cells, names in alike.items()]
    return _table(("operators", "role", "output", "besides"), rows)


_DETAILS: tuple[Callable[[OpRule], str], ...] = (
    lambda rule: "inputs and outputs share scale and zero point" if rule.same_params else "",
    lambda rule: "" if rule.per_channel else "one scale for all weights",
    lambda rule: f"depthwise: {rule.depthwise.value}" if rule.depthwise else "",
    lambda rule: "without groups" if rule.single_group else "",
    lambda rule: f"at least {rule.group_channels} channels per group" if rule.group_channels else "",
    lambda rule: f"at least {rule.least_channels} channels" if rule.least_channels else "",
    lambda rule: f"kernels of at most {rule.kernel_elements} elements" if rule.kernel_elements else "",
    lambda rule: f"channels filled up to a multiple of {rule.channels}" if rule.channels > 1 else "",
    lambda rule: "products of two activations too" if rule.dynamic_weight else "",
    lambda rule: f"inputs in {_format(rule.inputs)}" if rule.inputs else "",
    lambda rule: f"two activations in {_format(rule.dynamic_inputs)}" if rule.dynamic_inputs else "",
    lambda rule: "output range {:g} to {:g}".format(*rule.output_range) if rule.output_range else "",
    lambda rule: _values_of(rule.attributes, ", "),
    lambda rule: _prefixed("without ", ", ".join(sorted(rule.unknown_attributes))),
    lambda rule: _prefixed("not with ", _values_of(rule.wrong_together, " and ")),
    lambda rule: "inputs that nobody else reads take the output's scale" if rule.inputs_follow else "",
    lambda rule: f"fused with {', '.join(sorted(rule.sums_with))}" if rule.sums_with else "",
    lambda rule: (
        f"Q after a following {', '.join(sorted(rule.fused_in_float))}" if rule.fused_in_float else ""
    ),
    lambda rule: "" if rule.bias is None else f"input {rule.bias} is a bias",
    lambda rule: "" if rule.blocked is None else "weights in blocks",
)
"""What is special about a rule, in words."""


def _values_of(attributes: Mapping[str, Scalar], separator: str) -> str:
    return separator.join(f"{name} {value}" for name, value in attributes.items())


def _prefixed(prefix: str, text: str) -> str:
    return f"{prefix}{text}" if text else ""


def _format(spec: QuantSpec) -> str:
    low, high = spec.limits
    words = ["symmetric" if spec.symmetric else "asymmetric", *["powers of two"] * spec.power_of_two]
    return f"{spec.dtype.name.lower()} {low} … {high}, {', '.join(words)}"


def _channels(target: Target) -> str:
    """List which weights have per-channel scales when nobody asks for other types."""
    types = target.per_channel_types
    if types is not None and target.weight.dtype not in types:
        return "none"
    rules = {name: rule for name, rule in target.rules.items() if name in _WEIGHTED}
    return ", ".join(name for name, rule in rules.items() if rule.per_channel)


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _fields(kind: type) -> str:
    """Build the table of the fields of a dataclass, with the text of its docstring."""
    described = dict(_described(kind.__doc__ or ""))
    names = [field.name for field in fields(kind) if field.name != "name"]
    rows = [(f"`{name}`", _capitalized(described[name])) for name in names]
    extra = _values(kind)
    return f"### {_HEADINGS[kind]}\n\n{_table(('field', 'meaning'), rows)}{extra}"


def _described(text: str) -> Iterator[tuple[str, str]]:
    """Name and meaning of each attribute; several may share one line."""
    body = text.partition("Attributes:")[2]
    for found in re.finditer(r"^ {8}([\w, ]+): ((?:.|\n {9,})+)", body, re.MULTILINE):
        meaning = re.sub(r"``(.+?)``", r"`\1`", " ".join(found[2].split()))
        yield from ((name, meaning) for name in found[1].split(", "))


def _values(kind: type) -> str:
    """The names that fields of this dataclass may take."""
    if kind is QuantSpec:
        return f"\nNumber types: {', '.join(f'`{name}`' for name in TYPES)}.\n"
    return "".join(f"\n`{name}`:\n\n{_members(enum)}" for name, enum in _ENUMS.get(kind, {}).items())


_ENUMS: Mapping[type, Mapping[str, type[Choice]]] = {
    Target: {"bias": BiasStyle, "storage": Storage},
    OpRule: {"float_inputs": FloatInputs},
}


def _members(enum: type[Choice]) -> str:
    return "".join(_wrapped(f"`{member.value}`: {member.meaning}.", "- ") + "\n" for member in enum)


def _listed(types: Iterable[object]) -> str:
    return ", ".join(sorted(str(getattr(dtype, "name", dtype)).lower() for dtype in types))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrapped(text: str, bullet: str = "") -> str:
    indent = " " * len(bullet)
    return fill(text, 110, initial_indent=bullet, subsequent_indent=indent, break_on_hyphens=False)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
