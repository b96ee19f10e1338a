"""What the scripts that run peers share: their command line, and their data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import evaldata


def parser(description: str | None, *, needs_data: bool) -> argparse.ArgumentParser:
    """Return a parser of MODEL OUTPUT DATA, absolute paths.

    Args:
        description: the docstring of the script.
        needs_data: whether DATA must be given.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "output"):
        made.add_argument(name, type=_absolute)
    made.add_argument("data", type=_absolute, nargs=None if needs_data else "?")
    return made


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def feeds(folder: Path, input_name: str) -> Iterator[dict[str, Any]]:
    """Yield every file of ``folder``, pictures or ``.npz`` batches, as the inputs of one run."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npz":
            with np.load(path) as file:
                yield dict(file)
        else:
            yield {input_name: evaldata.picture(path)}
