"""Select parts of a module by name or type, as patterns of ONNX node names; and `skip_quant`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, did_you_mean
from onnxq.core.overrides import written
from onnxq.graph.nodes import all_nodes, name_of

Which: TypeAlias = str | type[torch.nn.Module]
"""The name of a module (``layer1.0.conv2``, or a glob: ``layer1.*``), or a type of modules."""

_MARK = "skip_quant"
"""The attribute of modules to keep in float."""


@dataclass(frozen=True)
class Layers:
    """Options for some layers only.

    Attributes:
        skip: layers to keep in float.
        override: layer -> its options.
        only: the only layers to quantize; None: all.
    """

    skip: tuple[Which, ...] = ()
    override: Mapping[Which, Mapping[str, Any]] = field(default_factory=dict)
    only: tuple[Which, ...] | None = None

    def added_to(self, config: QuantConfig, module: torch.nn.Module, model: ir.Model) -> QuantConfig:
        """Add these options and the marks on ``module`` to ``config``, as patterns of ONNX node names.

        Args:
            config: the options for all layers.
            module: the module.
            model: the ONNX model that it was exported to.

        Raises:
            ConfigError: the module has no such layer, or the options are wrong.
        """
        nodes = [name_of(node) for node in all_nodes(model)]
        skipped = [*marked(module), *(name for one in self.skip for name in names_of(module, one))]
        exclude = (*config.exclude, *patterns(skipped, nodes))
        override = (
            *config.override,
            *(
                written(pattern, options)
                for one, options in self.override.items()
                for pattern in patterns(names_of(module, one), nodes)
            ),
        )
        include = self._included(config, module, nodes)
        return config.changed(exclude=exclude, override=override, include=include)

    def _included(
        self, config: QuantConfig, module: torch.nn.Module, nodes: Sequence[str]
    ) -> tuple[str, ...]:
        """The patterns of the nodes to quantize.

        Raises:
            ConfigError: the layers that are named have no nodes, so that nothing would be quantized.
        """
        if self.only is None:
            return config.include
        found = tuple(patterns((name for one in self.only for name in names_of(module, one)), nodes))
        if not found:
            named = ", ".join(one if isinstance(one, str) else one.__name__ for one in self.only)
            raise ConfigError(f"the exported {type(module).__name__} has no nodes of the layers {named}")
        return (*config.include, *found)


def skip_quant(module: torch.nn.Module, *which: Which) -> None:
    """Mark parts of ``module`` to keep in float when it is quantized, with all the modules inside them.

    This is the same as setting ``part.skip_quant = True`` on each of them.

    Args:
        module: the module; its parts are marked.
        which: names (``layer1.0.conv2``), globs of names (``layer1.*``), types (``torch.nn.LayerNorm``).

    Raises:
        ConfigError: one of them matches no part of the module.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    for one in which:
        for name in names_of(module, one):
            setattr(parts[name], _MARK, True)


def names_of(module: torch.nn.Module, which: Which) -> list[str]:
    """Find the names of the parts that ``which`` matches.

    Raises:
        ConfigError: there are none.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    if isinstance(which, str):
        found = [which] if which in parts else [name for name in parts if fnmatchcase(name, which)]
    elif isinstance(which, type):
        found = [name for name, part in parts.items() if isinstance(part, which)]
    else:
        raise ConfigError(f"{which!r} is not a layer: expected the name of a module, or a type of modules")
    if not found:
        raise ConfigError(_unknown(module, which, parts))
    return found


def marked(module: torch.nn.Module) -> list[str]:
    """Find the names of the parts that `skip_quant` marked."""
    parts = module.named_modules(remove_duplicate=False)
    return [name for name, part in parts if getattr(part, _MARK, False)]


def patterns(names: Iterable[str], nodes: Iterable[str]) -> Iterator[str]:
    """Yield patterns that match all ONNX nodes of these modules; none for a module without nodes.

    Args:
        names: the names of the modules.
        nodes: the names of all nodes of the exported model.
    """
    nodes = tuple(nodes)
    for name in dict.fromkeys(names):
        pattern = f"{escape(name)}[./]*" if name else "*"
        if any(fnmatchcase(node, pattern) for node in nodes):
            yield pattern


def _unknown(module: torch.nn.Module, which: Which, parts: Iterable[str]) -> str:
    kind = type(module).__name__
    if not isinstance(which, str):
        return f"{kind} holds no {which.__name__}"
    near = did_you_mean(which, parts)
    return f"{kind} has no part called {which!r}{near} (see module.named_modules())"
