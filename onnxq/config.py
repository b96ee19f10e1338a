"""Every option, declared once: the command line, the Python API and the YAML file all read it here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from onnxq.errors import ConfigError

Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
IntegerType = Literal["uint8", "int8"]


def _option(default: Any, help: str, metavar: str | None = None, **constraints: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"metavar": metavar}, **constraints)


class QuantConfig(BaseModel):
    """How to quantize a model. Immutable; unknown names are refused.

    Field names are the option names of the command line with ``_`` for ``-``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **options: Any) -> None:
        """Validate ``options``.

        Raises:
            ConfigError: an option is unknown or has a wrong value; the message lists the valid ones.
        """
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error

    data: Path | None = _option(
        None, "calibration inputs: .npz, .npy, a directory of either, or a directory of images", "PATH"
    )
    preprocess: str | None = _option(
        None,
        "for images: a preset (imagenet, unit, ...) or key=value,... of resize, crop, mean, std, "
        "layout (nchw/nhwc), color (rgb/bgr); default: imagenet",
        "SPEC",
    )
    samples: int | None = _option(None, "use at most N samples; default: all", "N", ge=1)
    batch_size: int = _option(1, "samples per run", "N", ge=1)
    method: Method = _option("mse", "how ranges are chosen")
    percentile: float = _option(99.99, "for --method percentile", "P", gt=50, le=100)
    target: str = _option("onnxruntime", "deployment target", "NAME")
    activation: IntegerType | None = _option(None, "activation type; default: the target's")
    weight: IntegerType | None = _option(None, "weight type; default: the target's")
    per_tensor: bool = _option(False, "no per-channel weights")
    exclude: tuple[str, ...] = _option((), "keep matching nodes float: a name glob, or op:Softmax", "PATTERN")
    include: tuple[str, ...] = _option((), "quantize only matching nodes", "PATTERN")
    quantize_outputs: bool = _option(False, "quantize graph outputs too; they stay exact float otherwise")
    from_table: Path | None = _option(None, "take ranges from saved statistics; needs no data", "FILE")
    save_statistics: Path | None = _option(None, "keep the calibration statistics (.npz)", "FILE")
    provider: tuple[str, ...] = _option((), "ONNX Runtime execution provider for calibration", "NAME")
    threads: int = _option(0, "threads for calibration; default: all", "N", ge=0)
    seed: int = _option(0, "for whatever is random", "N", ge=0)

    @model_validator(mode="after")
    def _check_ranges_have_one_source(self) -> QuantConfig:
        if self.data is not None and self.from_table is not None:
            raise ValueError("--data and --from-table both give the ranges: use one of them")
        return self

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> QuantConfig:
        """Read a YAML file of options; ``overrides`` win over it.

        Raises:
            ConfigError: the file cannot be read, or holds wrong options.
        """
        import yaml

        try:
            options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the options in {path}: {error}") from error
        if not isinstance(options, dict):
            raise ConfigError(f"{path}: expected lines like 'method: entropy', got {type(options).__name__}")
        options = {str(name).replace("-", "_"): value for name, value in options.items()}
        return cls(**{**options, **overrides})

    def save(self, path: Path) -> None:
        """Write all options as YAML, for `load`.

        Raises:
            ConfigError: the file cannot be written.
        """
        import yaml

        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the options to {path}: {error}") from error


def _explain(error: Any) -> str:
    """One validation error in the user's words."""
    option = "--" + str(error["loc"][0]).replace("_", "-") if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        valid = ", ".join(QuantConfig.model_fields)
        return f"unknown option {error['loc'][0]!r}; valid options: {valid}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{option}: {message}, got {error['input']!r}" if option else message
