"""Read YAML files that users write: options and targets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.core.errors import OnnxqError

if TYPE_CHECKING:
    import yaml


def read_mapping(path: Path, what: str, example: str, wrong: type[OnnxqError]) -> dict[Any, Any]:
    """Read a YAML file of keys and values; an empty file gives an empty dict.

    Args:
        path: a YAML file.
        what: a word for its contents, for messages.
        example: a line of such a file, for messages.
        wrong: the error class to raise.

    Raises:
        OnnxqError: of class ``wrong``: the file cannot be read, is not YAML, holds something other than keys
            with values, or holds a key twice. The message names the file, and for wrong YAML the line.
    """
    import yaml  # only here: the import takes time, and --help imports the options without it

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        twice = next(_repeated(yaml.compose(text, yaml.SafeLoader)), None)
    except OSError as error:
        raise wrong(f"cannot read the {what} in {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise wrong(f"{path}{line}: not YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise wrong(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if twice is not None:
        raise wrong(f"{path}, line {twice.start_mark.line + 1}: {twice.value!r} is given twice: keep one")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise wrong(f"{path}: expected lines like '{example}', got a {type(content).__name__}")
    return content


def _repeated(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yield keys that occur earlier in the same mapping; YAML's reader silently takes the last one."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for index, (key, value) in enumerate(pairs):
        if any((other.tag, other.value) == (key.tag, key.value) for other, _ in pairs[:index]):
            yield key
        yield from _repeated(value)
