"""The file that statistics are kept in: an ``.npz`` with a JSON header that says what it is."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.errors import CalibrationError

FORMAT = "calibration statistics"
VERSION = 1
HEADER = "header"


def write(path: Path, header: Mapping[str, object], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write ``header`` (JSON values) and ``arrays`` to ``path``, which is replaced at the very end.

    Raises:
        CalibrationError: the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **header})
    columns: dict[str, Any] = {HEADER: np.frombuffer(text.encode(), np.uint8), **arrays}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **columns)
        temporary.replace(path)
    except OSError as error:
        raise CalibrationError(
            f"statistics cannot be written to {path}: {error.strerror or error}"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
    """The header and the arrays of a file that `write` made.

    Raises:
        CalibrationError: no such file, a damaged one, another format or another version.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file):
            pass
        with np.load(path, allow_pickle=False) as archive:
            if HEADER not in archive:
                raise CalibrationError(f"{path} does not hold calibration statistics")
            header = json.loads(archive[HEADER].tobytes())
            _check(path, header)
            return header, {name: archive[name] for name in archive.files if name != HEADER}
    except OSError as error:
        raise CalibrationError(f"statistics cannot be read from {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(
            f"{path} does not hold calibration statistics, or is damaged: {error}"
        ) from error


def _check(path: Path, header: object) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CalibrationError(f"{path} does not hold calibration statistics")
    if header.get("version") != VERSION:
        raise CalibrationError(
            f"{path} holds statistics of version {header.get('version')}, expected {VERSION}; "
            "collect them anew with this release"
        )
