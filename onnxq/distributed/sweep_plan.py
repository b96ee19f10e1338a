"""The plan of a sweep: models × targets × options, from a YAML file, as a list of independent jobs.

::

    models:
      lite0: {model: lite0.onnx, data: pictures/, preprocess: "resize=224,crop=224"}
      encoder: {model: minilm.onnx, data: sentences.npz}
    targets: [onnxruntime, tensorrt]
    options:
      plain: {correct: none}
      best: {method: mse, goal: "sqnr>=25"}
    common: {threads: 1}

Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.yaml_files import read_mapping

KEYS = ("models", "targets", "options", "common")

FILES = ("model", "data", "from_table")
"""Entries that are paths."""

EXAMPLE = "models: {net: {model: net.onnx, data: data.npz}}"


@dataclass(frozen=True)
class SweepJob:
    """One model to make.

    Attributes:
        name: model, target and options, by their names in the plan.
        model: path of the float model.
        output: path of the model to write.
        options: the fields of `QuantConfig`, as JSON values.
    """

    name: tuple[str, str, str]
    model: str
    output: str
    options: Mapping[str, Any]

    @property
    def result(self) -> Path:
        """The file that tells that the job is done."""
        return Path(self.output).with_suffix(".json")

    @property
    def key(self) -> str:
        """A checksum of all that the result follows from; it is done again if that has changed."""
        files = [self.model, *(str(self.options[name]) for name in FILES if name in self.options)]
        state = [[file, _state(Path(file))] for file in files]
        text = json.dumps([state, dict(self.options)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def dumps(self) -> str:
        """Write the job for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> SweepJob:
        """Invert `dumps`."""
        read = json.loads(text)
        return cls(tuple(read["name"]), read["model"], read["output"], read["options"])


def _state(path: Path) -> list[int]:
    """What changes when a file does: size and time."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def read_plan(path: Path, folder: Path) -> list[SweepJob]:
    """Read the jobs of a plan.

    Args:
        path: the plan.
        folder: where the models are to be written.

    Raises:
        ConfigError: the plan cannot be read, lacks something, or has wrong options; the message names the
            entry.
    """
    plan = read_mapping(path, "a plan", EXAMPLE, ConfigError)
    if unknown := [str(key) for key in plan if key not in KEYS]:
        raise ConfigError(f"{path}: unknown entry {', '.join(unknown)}: expected {', '.join(KEYS)}")
    models = _models(plan.get("models"), path)
    targets = [str(target) for target in _list(plan.get("targets", ["onnxruntime"]), f"{path}: targets")]
    options = _named(plan.get("options", {"default": {}}), f"{path}: options")
    common = _mapping(plan.get("common", {}), f"{path}: common")
    jobs = []
    for (name, model), target, (kind, changes) in product(models.items(), targets, options.items()):
        given = {key: value for key, value in model.items() if key != "model"}
        merged = {**_plain(common), **_plain(given), **_plain(changes), "target": target}
        merged |= {key: str(path.parent / str(merged[key])) for key in FILES if key in merged}
        _check(merged, f"{path}: {name}, {target}, {kind}")
        output = folder / _file(name) / _file(target) / f"{_file(kind)}.onnx"
        jobs.append(
            SweepJob((name, target, kind), str(path.parent / str(model["model"])), str(output), merged)
        )
    if len({job.output for job in jobs}) < len(jobs):
        raise ConfigError(f"{path}: two models, targets or options have the same name")
    return jobs


def _models(given: Any, path: Path) -> dict[str, Mapping[str, Any]]:
    """Read the models: a list of paths, or names with a path or with options."""
    if isinstance(given, list):
        given = {Path(str(model)).stem: str(model) for model in given}
    named = _mapping(given, f"{path}: models")
    found = {str(name): {"model": one} if isinstance(one, str) else one for name, one in named.items()}
    for name, one in found.items():
        if not isinstance(one, Mapping) or "model" not in one:
            raise ConfigError(f"{path}: models: {name}: expected a path, or entries with model: FILE.onnx")
    if not found:
        raise ConfigError(f"{path}: models: expected at least one model, such as {EXAMPLE}")
    return found


def _named(given: Any, where: str) -> dict[str, Mapping[str, Any]]:
    return {
        str(name): _mapping(one or {}, f"{where}: {name}") for name, one in _mapping(given, where).items()
    }


def _mapping(given: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: expected entries 'name: value'")
    return given


def _list(given: Any, where: str) -> Iterator[Any]:
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{where}: expected a list, such as [onnxruntime, tensorrt]")
    return iter(given)


def _plain(options: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name).replace("-", "_"): value for name, value in options.items()}


def _check(options: Mapping[str, Any], where: str) -> None:
    try:
        QuantConfig(**options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _file(name: str) -> str:
    """Make a name of a file of any name."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"
