"""The section of what was asked for."""

from __future__ import annotations

from typing import Any

from onnxq.core.config import QuantConfig
from onnxq.pipelines.report.markup import Markup, element, facts, folded, joined
from onnxq.pipelines.report.report import Report


def request(report: Report) -> Markup:
    """Files, data, the options that were given, all options, versions."""
    asked = report.request
    table = asked.config.from_table
    source = asked.data or ("none: inputs were made up" if table is None else f"none: ranges from {table}")
    files = {"float model": asked.model, "int8 model": asked.output, "calibration data": source}
    options = asked.config.model_dump(mode="json")
    given = {name: value for name, value in options.items() if value != _default(name)}
    always = {name: options[name] for name in ("target", "method")}
    return joined(
        [
            facts([*files.items(), *_said({**always, **given}), *report.versions.items()]),
            folded("All options", facts(_said(options)), is_open=False),
            element("p", "onnxq --save-config keeps the options in a file.", class_="quiet"),
        ]
    )


def _default(name: str) -> Any:
    default = QuantConfig.model_fields[name].default
    return list(default) if isinstance(default, tuple) else default


def _said(options: dict[str, Any]) -> list[tuple[str, str]]:
    return [("--" + name.replace("_", "-"), _value(value)) for name, value in options.items()]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
