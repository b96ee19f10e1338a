"""YAML files that users write: options, targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError


def read_mapping(path: Path, what: str, example: str, wrong: type[OnnxqError]) -> dict[Any, Any]:
    """What a file says, key by key; nothing if it is empty.

    Args:
        path: a YAML file.
        what: what it holds, for messages.
        example: a line of such a file, for messages.
        wrong: the error to raise.

    Raises:
        OnnxqError: ``wrong``, if the file cannot be read, is not YAML, or holds something else than keys with
            values; the message names the file, and the line where YAML ends.
    """
    import yaml  # not with the options, which --help reads

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise wrong(f"cannot read the {what} in {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise wrong(f"{path}{line}: not YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise wrong(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise wrong(f"{path}: expected lines like '{example}', got a {type(content).__name__}")
    return content
