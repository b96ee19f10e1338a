"""`--report`: one HTML file that tells what was asked, what came out, and on what grounds."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path

from calibrators.atomic import drafts
from onnxq.core.errors import ModelError
from onnxq.pipelines.report.page import page
from onnxq.pipelines.report.report import Report


def write_report(report: Report, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        ModelError: it cannot be written; the model that it is about is there by then.
    """
    text = page(report).encode("utf-8", "xmlcharrefreplace")  # paths may hold what is no text
    try:
        with drafts([path]) as beside:
            beside[path].write_bytes(text)
    except OSError as error:
        raise ModelError(
            f"{path}: the report cannot be written: {error.strerror or error}. "
            f"The model itself was written to {report.request.output}."
        ) from error


def versions() -> dict[str, str]:
    """Of the programs that take part."""
    ours = "not installed"
    with suppress(metadata.PackageNotFoundError):
        ours = metadata.version("onnxq")
    libraries = {name: import_module(module).__version__ for name, module in _LIBRARIES.items()}
    system = f"{platform.system()} {platform.release()} ({platform.machine()})"
    return {"onnxq": ours, **libraries, "Python": platform.python_version(), "system": system}


_LIBRARIES = {"ONNX Runtime": "onnxruntime", "onnx": "onnx", "onnx-ir": "onnx_ir", "NumPy": "numpy"}
