"""The subject of a check: a model with its file, its target, and samples to run it on."""

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
from onnxq.graph.qdq.read_qdq import DEQUANTIZE, layers, links
from onnxq.targets.target import Target
from onnxq.verify.verdict import Verdict

SECONDS = 600.0
"""The time limit for another runtime to build the model, in seconds."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A Q/DQ model to check.

    Attributes:
        path: the file of the model.
        model: the content of the file; every node has a unique name.
        target: the target that the model is for.
        samples: samples to run it on; few are enough, and there may be none.
        threads: threads of ONNX Runtime; 0 leaves the number to it.
        seconds: the time limit for another runtime.
    """

    path: str | os.PathLike[str]
    model: ir.Model
    target: Target
    samples: Sequence[Sample] = ()
    threads: int = 0
    seconds: float = SECONDS

    @cached_property
    def layers(self) -> tuple[ir.Node, ...]:
        """The weighted nodes that should run in integers."""
        return layers(self.model.graph)

    @cached_property
    def links(self) -> tuple[ir.Node, ...]:
        """The other nodes between quantized tensors."""
        return links(self.model.graph)

    @property
    def weighted(self) -> int:
        """The number of weighted nodes in the main graph."""
        return sum(node.op_type in WEIGHTED for node in self.model.graph)

    @property
    def quantized(self) -> bool:
        """Whether the model has any DequantizeLinear."""
        return any(node.op_type == DEQUANTIZE for node in self.model.graph)


Checker = Callable[[Subject], Verdict]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Path, ir.Model]]:
    """Load a model; if node names are missing or not unique, use a temporary copy with unique names.

    Raises:
        ModelError: the model cannot be read, or the copy cannot be written.
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
    """Give every node a unique name, and return whether that changed anything."""
    names = [node.name for node in model.graph]
    if all(names) and len(set(names)) == len(names):
        return False
    UniqueNamesPass()(model)
    return True
