"""What ONNX Runtime makes of a Q/DQ model: which nodes really run as integer kernels.

Its graph optimizer replaces DQ -> operator -> Q patterns that it knows by integer kernels of the same
name; what it does not know runs in float between Q/DQ, without a word.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from calibrators.session import open_session

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})

WEIGHTED_KERNELS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulNBits"})
"""What they are called when they run in integers."""

FLOAT_KERNELS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"}
)
"""Other operators whose integer kernels go by other names; these are the float ones. (Those that only pass
values on, as Reshape and MaxPool, have one name for all types.)"""


def kernels(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Node name -> operator type, after fusion, of the main graph.

    Raises:
        CalibrationError: ONNX Runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        fused = Path(folder) / "fused.onnx"
        open_session(path, threads=1, save_fused=fused)
        graph = onnx.load(fused, load_external_data=False).graph
    return {node.name: node.op_type for node in graph.node}


def unfused(path: str | os.PathLike[str], planned: Mapping[str, str]) -> tuple[str, ...]:
    """Of the ``planned`` nodes (name -> operator type), those that run as float kernels after all.

    Raises:
        CalibrationError: ONNX Runtime refuses the model.
    """
    found = kernels(path)
    return tuple(name for name, op_type in planned.items() if not _is_integer(op_type, _kernel(name, found)))


def _kernel(name: str, found: Mapping[str, str]) -> str | None:
    """What became of a node. Fused with its bias it is called by its own name, a slash and the fusion's."""
    renamed = (op_type for other, op_type in found.items() if other.startswith(f"{name}/"))
    return found.get(name) or next(renamed, None)


def _is_integer(op_type: str, kernel: str | None) -> bool:
    """Whether a planned operator ended as an integer kernel.

    Those with weights must be found as one: a node that is gone was fused with something in float. Of the
    others some vanish rightly (a Flatten becomes a Reshape), so only float kernels tell.
    """
    return kernel in WEIGHTED_KERNELS if op_type in WEIGHTED else kernel not in FLOAT_KERNELS
