"""What is checked: a model with its file, the target it is for, and samples to run it on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.graph.files import load, write
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.passes.names import UniqueNamesPass
from onnxq.graph.read_qdq import DEQUANTIZE, layers, links
from onnxq.targets.target import Target
from onnxq.verify.verdict import Verdict

SECONDS = 600.0
"""A runtime that has not built its model by then is not waited for."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A Q/DQ model.

    Attributes:
        path: its file.
        model: what the file holds; every node has a name of its own.
        target: what it is for.
        samples: to run it on; few are enough, none is possible.
        threads: threads of ONNX Runtime; 0 leaves it to the runtime.
        seconds: how long another runtime may take.
    """

    path: str | os.PathLike[str]
    model: ir.Model
    target: Target
    samples: Sequence[Sample] = ()
    threads: int = 0
    seconds: float = SECONDS

    @cached_property
    def layers(self) -> tuple[ir.Node, ...]:
        """The weighted nodes that are to run in integers."""
        return layers(self.model.graph)

    @cached_property
    def links(self) -> tuple[ir.Node, ...]:
        """The other nodes that stand between integers."""
        return links(self.model.graph)

    @property
    def weighted(self) -> int:
        """How many weighted nodes there are in the main graph."""
        return sum(node.op_type in WEIGHTED for node in self.model.graph)

    @property
    def quantized(self) -> bool:
        """Whether anything is."""
        return any(node.op_type == DEQUANTIZE for node in self.model.graph)


Checker = Callable[[Subject], Verdict]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Path, ir.Model]]:
    """The model of a file; where names are missing or used twice, of a copy in which they are not.

    Raises:
        ModelError: it cannot be read, or the copy cannot be written.
    """
    model = load(path)
    if not _renamed(model):
        yield Path(path), model
        return
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "named.onnx"
        write(model, copy)
        yield copy, model


def _renamed(model: ir.Model) -> bool:
    """Give every node a name of its own; say whether that changed anything."""
    names = [node.name for node in model.graph]
    if all(names) and len(set(names)) == len(names):
        return False
    UniqueNamesPass()(model)
    return True
