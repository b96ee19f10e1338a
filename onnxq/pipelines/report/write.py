"""Write the report of ``--report``: one HTML file."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path

from calibrators.atomic import staged
from onnxq.core.errors import ModelError
from onnxq.pipelines.report.page import page
from onnxq.pipelines.report.report import Report


def write_report(report: Report, path: Path) -> None:
    """Write the page, completely or not at all.

    Raises:
        ModelError: the report cannot be written.
    """
    text = page(report).encode("utf-8", "xmlcharrefreplace")  # paths may hold bytes that are no text
    try:
        with staged([path]) as beside:
            beside[path].write_bytes(text)
    except OSError as error:
        raise ModelError(f"{path}: the report cannot be written: {error.strerror or error}") from error


def versions() -> dict[str, str]:
    """Collect the versions of the programs involved: name -> version."""
    ours = "not installed"
    with suppress(metadata.PackageNotFoundError):
        ours = metadata.version("onnxq")
    libraries = {name: import_module(module).__version__ for name, module in _LIBRARIES.items()}
    system = f"{platform.system()} {platform.release()} ({platform.machine()})"
    return {"onnxq": ours, **libraries, "Python": platform.python_version(), "system": system}


_LIBRARIES = {"ONNX Runtime": "onnxruntime", "onnx": "onnx", "onnx-ir": "onnx_ir", "NumPy": "numpy"}
