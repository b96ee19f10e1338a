"""Check that a model file is valid: by ONNX's checker, and by ONNX Runtime where that knows more."""

from __future__ import annotations

import os

import onnx
import onnx.checker

from calibrators.errors import CalibrationError
from calibrators.onnx_files import read_model
from calibrators.session import open_session
from onnxq.core.errors import ModelError
from onnxq.graph.passes.shapes import light_proto
from onnxq.graph.runtime_operators import runtime_nodes, set_apart

_CHECKER_ERRORS = (onnx.checker.ValidationError, ValueError)


def check_valid(path: str | os.PathLike[str], complaint: str) -> None:
    """Check a model file.

    Operators of ONNX Runtime in the standard domain, and inputs and outputs without a declared shape, are
    valid if the runtime loads the model and the checker accepts the rest of it.

    Raises:
        ModelError: the model is not valid; the message begins with ``complaint``.
    """
    try:
        onnx.checker.check_model(os.fspath(path))
    except _CHECKER_ERRORS as e:
        if not _is_valid_for_runtime(path):
            raise ModelError(f"{complaint}: {e}") from e


def _is_valid_for_runtime(path: str | os.PathLike[str]) -> bool:
    """Whether the model has something that only the runtime takes, and is valid with it."""
    try:
        model = read_model(path)
        proto = light_proto(set_apart(model))
        interface = [info.type.tensor_type for info in (*proto.graph.input, *proto.graph.output)]
        bare = [kind for kind in interface if kind.elem_type and not kind.HasField("shape")]
        if not runtime_nodes(model) and not bare:
            return False
        for kind in bare:
            kind.shape.SetInParent()
        onnx.checker.check_model(proto)
        open_session(path)
    except (*_CHECKER_ERRORS, OSError, TypeError, RuntimeError, CalibrationError):
        return False
    return True
