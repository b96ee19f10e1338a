"""Metrics of the user's own: functions in Python.

The names of its parameters decide what a function gets:

=====================  ============================================================================
``(outputs, labels)``  a list of ``{output name: array}`` and a list of labels, one for each sample.
                       Arrays are those that the model gives for this sample alone: where it has a
                       batch axis, that has size 1
``(outputs)``          the same without labels
``(session)``          a session: ``run(None, feeds)``, ``get_inputs()``, ``get_outputs()``
``(path)``             the path of the model; so does a single parameter of any other name
=====================  ============================================================================
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from calibrators.held_noise import noise_feeds
from calibrators.session import Model
from onnxq.core.errors import ConfigError
from onnxq.graph.files import write
from onnxq.verify.metrics.task_metric import Seen, TaskMetric

PLACE = re.compile(r"(.+\.py):(\w+)")
"""``FILE.py:FUNCTION``."""

FORMS = "(outputs, labels), (outputs), (session) or (path)"


class Session:
    """A session as a function of the user's gets it; random operators draw the same in every model."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model; ``names`` are those of the outputs to return, None: all."""
        found: list[Any] = self._session.run(names, {**feeds, **noise_feeds(self._session, "metric")})
        return found

    def get_inputs(self) -> list[Any]:
        """The inputs, as `onnxruntime.InferenceSession` gives them."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """The outputs, as `onnxruntime.InferenceSession` gives them."""
        return list(self._session.get_outputs())


def load_function(place: str) -> Callable[..., Any]:
    """Load the function that ``FILE.py:FUNCTION`` names; again only if the file has changed.

    Raises:
        ConfigError: the file or the function does not exist, or the file raises an error.
    """
    match = PLACE.fullmatch(place)
    assert match is not None
    path = Path(match[1])
    if not path.is_file():
        raise ConfigError(f"metric: {path}: no such file")
    return _loaded(path.resolve(), match[2], path.stat().st_mtime_ns)


@cache
def _loaded(path: Path, name: str, _: int) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"onnxq_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look modules up by name
    sys.path.insert(0, str(path.parent.resolve()))  # as Python does for a script: modules beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = _line(error, path)
        raise ConfigError(f"metric: {path}{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"metric: {path} has no function {name!r}; it has {', '.join(own) or 'none'}")
    return function  # type: ignore[no-any-return]


def source_of(metric: Any) -> str:
    """Return what identifies a metric: its name, and the source of a function, if it can be read."""
    if isinstance(metric, str) and not PLACE.fullmatch(metric):
        return metric
    function = load_function(metric) if isinstance(metric, str) else metric
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", "metric")


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == path.name:
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def user_metric(function: Callable[..., Any]) -> TaskMetric:
    """Make a metric of a function.

    Raises:
        ConfigError: its parameters are none of the forms above.
    """
    name = getattr(function, "__name__", "metric")
    needed = _needed(function)
    if needed == ["outputs", "labels"]:
        return TaskMetric(
            name,
            lambda seen: (seen.outputs, seen.label),
            lambda kept: function([outputs for outputs, _ in kept], [label for _, label in kept]),
            is_share=True,
        )
    if needed == ["outputs"]:
        return TaskMetric(name, _outputs, lambda kept: function(list(kept)), needs_labels=False)
    if needed == ["session"]:
        return TaskMetric(name, _outputs, len, whole=lambda _, session: function(Session(session)))
    if len(needed) == 1:
        return TaskMetric(name, _outputs, len, whole=lambda model, _: _of_path(function, model))
    raise ConfigError(f"metric {name} takes ({', '.join(needed)}): expected the parameters {FORMS}")


def _needed(function: Callable[..., Any]) -> list[str]:
    """List the parameters that have no default; a function without a signature takes a path."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["path"]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]


def _outputs(seen: Seen) -> Any:
    return seen.outputs


def _of_path(function: Callable[..., Any], model: Model) -> Any:
    if not isinstance(model, ir.Model):
        return function(Path(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(model, path)
        return function(path)
