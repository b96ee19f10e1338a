"""Read YAML files that users write: options and targets."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrators.atomic import NOT_PLAIN, is_special
from onnxq.core.errors import OnnxqError

if TYPE_CHECKING:
    import yaml


MOST_BYTES = 1 << 24
"""Files of options and targets have some kilobytes, or more if an option lists many nodes."""

MOST_NODES = 100_000
"""The most values of a file, those counted again that an alias repeats: ten lines can hold billions."""


def read_mapping(path: Path, what: str, example: str, wrong: type[OnnxqError]) -> dict[Any, Any]:
    """Read a YAML file of keys and values; an empty file gives an empty dict.

    Args:
        path: a YAML file.
        what: a word for its contents, for messages.
        example: a line of such a file, for messages.
        wrong: the error class to raise.

    Raises:
        OnnxqError: of class ``wrong``: the file cannot be read, is not YAML, holds something other than keys
            with values, holds a key twice, or is too large. The message names the file, and for wrong YAML
            the line.
    """
    import yaml  # only here: the import takes time, and --help imports the options without it

    if is_special(path):
        raise wrong(f"cannot read the {what} in {path}: it {NOT_PLAIN}: give a plain file")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise wrong(f"{path}: not a file of {what}: larger than {MOST_BYTES >> 20} MiB")
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None and _size(root, {}) > MOST_NODES:
            raise wrong(
                f"{path}: its aliases (*name) multiply to more than {MOST_NODES} values: write them out"
            )
        content = None if root is None else loader.construct_document(root)
        twice = next(_repeated(root), None)
    except OSError as error:
        raise wrong(f"cannot read the {what} in {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise wrong(f"{path}{line}: not YAML: {error.problem}") from error
    except RecursionError as error:
        raise wrong(f"{path}: not a file of {what}: nested too deeply") from error
    except (ValueError, yaml.YAMLError) as error:
        raise wrong(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if twice is not None:
        raise wrong(f"{path}, line {twice.start_mark.line + 1}: {twice.value!r} is given twice: keep one")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise wrong(f"{path}: expected lines like '{example}', got a {type(content).__name__}")
    return content


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values of a tree, again at each alias; infinity if it holds itself.

    Args:
        node: its root.
        known: the size of each node that was counted before, by its id; infinity while it is counted.
    """
    if id(node) not in known:
        known[id(node)] = inf
        known[id(node)] = 1 + sum(_size(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the keys and values of a mapping, or the items of a list."""
    for item in node.value if isinstance(node.value, list) else ():
        yield from item if isinstance(item, tuple) else (item,)


def _repeated(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yield keys that occur earlier in the same mapping; YAML's reader silently takes the last one."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    seen: set[tuple[str, str]] = set()
    for key, value in pairs:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                yield key
            seen.add((key.tag, key.value))
        yield from _repeated(value)
