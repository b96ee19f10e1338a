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

FLOAT_KERNELS = frozenset(
    {
        *("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
        *("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"),
    }
)
"""Kernels that compute in float; their integer kernels go by other names. (Those that only pass values
on, as Reshape and MaxPool, have one name for all types.)"""


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
    return tuple(name for name in planned if found.get(name) in FLOAT_KERNELS)
