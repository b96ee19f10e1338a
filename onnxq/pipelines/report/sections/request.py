"""The section on the configuration: files, data, options, versions."""

from __future__ import annotations

from typing import Any

from onnxq.core.config import QuantConfig
from onnxq.pipelines.report.blocks import Blocks, Facts, Folded, Paragraph
from onnxq.pipelines.report.report import Report


def request(report: Report) -> Blocks:
    """Yield files, data, the given options, versions, and all options."""
    asked = report.request
    table = asked.config.from_table
    source = asked.data or ("none: synthetic inputs" if table is None else f"none: ranges from {table}")
    files = {"float model": asked.model, "int8 model": asked.output, "calibration data": source}
    options = asked.config.model_dump(mode="json")
    given = {name: value for name, value in options.items() if value != _default(name)}
    always = {name: options[name] for name in ("target", "method")}
    yield Facts((*files.items(), *_spelled({**always, **given}), *report.versions.items()))
    yield Folded("All options", Facts(_spelled(options)), is_open=False)
    yield Paragraph("onnxq quantize --save-config writes the options to a file.", "quiet")


def _default(name: str) -> Any:
    default = QuantConfig.model_fields[name].default
    return list(default) if isinstance(default, tuple) else default


def _spelled(options: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(("--" + name.replace("_", "-"), _value(value)) for name, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
