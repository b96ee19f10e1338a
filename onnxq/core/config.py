"""All options, declared once for the command line, the Python API and the YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from calibrators.atomic import staged
from calibrators.data.preprocess import parse_preprocess
from onnxq.core.errors import ConfigError
from onnxq.core.floor import LEAST_SQNR
from onnxq.core.goal import parse_goal
from onnxq.core.mode_options import check_mode
from onnxq.core.option_errors import explain, invalid
from onnxq.core.option_types import (
    ActivationType,
    AutotuneSwitch,
    BlockFormatChoice,
    Corrections,
    FilePath,
    FilePaths,
    FloatType,
    IOTypes,
    LabelChoice,
    Method,
    MetricChoice,
    Mode,
    Names,
    TableFormats,
    Verify,
    WeightMethod,
    WeightType,
    is_text,
)
from onnxq.core.overrides import Override, parse_override
from onnxq.core.yaml_files import read_mapping


def _option(group: str, default: Any, text: str, metavar: str | None = None, **limits: Any) -> Any:
    """Declare an option.

    Args:
        group: heading in the help.
        default: default value.
        text: help text.
        metavar: name of the value in the help.
        limits: limits of the value, as for `pydantic.Field`.
    """
    return Field(default, description=text, json_schema_extra={"group": group, "metavar": metavar}, **limits)


@dataclass(frozen=True)
class _Origin:
    """The file that options were read from, if any: options are equal wherever they come from."""

    file: Path | None = field(default=None, compare=False)


class QuantConfig(BaseModel):
    """The options for quantizing a model. Immutable; unknown names are refused.

    Field names are the option names of the command line with ``_`` instead of ``-``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    _origin: _Origin = PrivateAttr(default=_Origin())

    def __init__(self, **options: Any) -> None:
        """Validate ``options``.

        Raises:
            ConfigError: an option is unknown or has a wrong value; the message lists the valid ones.
        """
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields)) from error

    data: FilePath | None = _option(
        "data",
        None,
        "calibration inputs: .npz, .npy, a directory of either, or a directory of images",
        "PATH",
    )
    preprocess: str | None = _option(
        "data",
        None,
        "for images: a preset (imagenet, unit, signed, raw) or key=value,... of resize, crop, mean, std, "
        "layout (nchw/nhwc), color (rgb/bgr); default: imagenet",
        "SPEC",
    )
    samples: int | None = _option("data", None, "use at most N samples; default: all", "N", ge=1)
    batch_size: int = _option("data", 1, "samples per run", "N", ge=1)
    skip_bad_samples: bool = _option(
        "data", False, "skip samples that cannot be used; they are named and counted"
    )
    every_element: bool = _option(
        "data", False, "count every element of large tensors, not a regular selection; takes longer"
    )
    method: Method = _option("ranges", "auto", "how ranges are chosen")
    percentile: float = _option(
        "ranges", 99.99, "share of values to keep, in per cent, for --method percentile", "P", gt=50, le=100
    )
    weight_method: WeightMethod = _option(
        "ranges",
        "mse",
        "how weight scales are chosen: mse (least rounding error) or absmax (cover the largest weight)",
    )
    correct: Corrections = _option(
        "accuracy",
        ("center", "equalize", "ranges", "rounding", "bias"),
        "a correction to try, kept if it helps on held-out samples: center, equalize, ranges, rounding, "
        "adaround (slow; for few bits), bias, full-bias, or none; in mode weight-only none (data chooses no "
        "weights then), in mode dynamic equalize or none",
        "NAME,...",
    )
    time_limit: float | None = _option(
        "accuracy",
        None,
        "time limit for all corrections together; one that would take longer is left out; default: as long "
        "as calibration and evaluation took, at least 10, and 600 for weights of few bits or adaround",
        "SECONDS",
        ge=0,
    )
    goal: str | None = _option(
        "goal",
        None,
        "give weights more bits, then activations, then keep nodes in float, until the goal is reached on "
        "held-out samples: sqnr>=25 (dB), agreement>=0.99, metric>=0.37, metric>=0.99x (of float's); "
        "in mode weight-only, give matrices more bits, or fewer: kl<=0.05, perplexity<=1.02x, size<=100MB",
        "GOAL",
    )
    metric: MetricChoice = _option(
        "metric",
        None,
        "the metric of your task, for a goal too: FILE.py:FUNCTION (of outputs and labels, or of a session), "
        "top1, top5, map:yolo, map:detr, map:boxes, miou, wer, cer, cosine, spearman, kl, perplexity",
        "METRIC",
    )
    labels: LabelChoice = _option(
        "metric",
        None,
        "for --metric: an array of the .npz data, a .npy, .npz or .csv file (file name, label), COCO "
        "annotations (.json), or float: the float model's own results",
        "LABELS",
    )
    floor: float = _option(
        "goal",
        LEAST_SQNR,
        "give nodes 16-bit activations, if the target has them, or keep them in float, where an output would "
        "be of no use: below this SQNR in dB, or with less than 90% equal decisions below 20 dB; 0: never",
        "DB",
        ge=0,
    )
    strict: bool = _option(
        "goal", False, "write nothing, and exit with 1, where a result should not be trusted"
    )
    search_log: FilePath | None = _option(
        "goal", None, "log the search for --goal; the same command resumes it from there", "FILE"
    )
    from_table: FilePath | None = _option(
        "tables",
        None,
        "take ranges from a table or saved statistics; no data; corrections: calibrate --with-moments",
        "FILE",
    )
    table: FilePaths = _option("tables", (), "also write a calibration table", "FILE")
    table_format: TableFormats = _option(
        "tables",
        (),
        "the format of each table, if the file name does not tell: tensorrt, ort, ncnn, snpe, qnn, mqbench, "
        "mqbench-snpe, mqbench-vitis, mqbench-ppl, ppq, json",
        "NAME",
    )
    save_statistics: FilePath | None = _option("tables", None, "save calibration statistics (.npz)", "FILE")
    report: FilePath | None = _option("tables", None, "also write a report (a single HTML file)", "FILE.html")
    target: str = _option(
        "plan",
        "onnxruntime",
        "deployment target: onnxruntime, onnxruntime-avx2, onnxruntime-arm, tensorrt, tensorrt-fp8, "
        "tensorrt-int4, tensorrt8, openvino, qnn, vitis-xint8, snpe, ppl-w8a16, tvm, academic-w4a8, "
        "academic-w4a4, academic-w2a4, or a .yaml file that describes a target",
        "NAME",
    )
    autotune: AutotuneSwitch = _option(
        "speed",
        "auto",
        "keep nodes in float where float is faster, measured on this machine with ONNX Runtime and "
        "--threads; auto: only if int8 is hardly faster than float; full: always, as long as it takes",
    )
    mode: Mode = _option(
        "mode",
        "static",
        "static: activation ranges from calibration data; dynamic: ranges found at run time, for MatMul, "
        "Gemm, LSTM, GRU, Gather, and Conv if included; weight-only: matrices in blocks of 2 to 8 bits "
        "beside float activations, for language models of any size; the last two need no data",
    )
    activation: ActivationType | None = _option("plan", None, "activation type; default: the target's")
    weight: WeightType | None = _option(
        "plan", None, "weight type; default: the target's; float16: only with --mode dynamic"
    )
    block_size: int | None = _option(
        "plan",
        None,
        "per-block weight scales for MatMul and Gemm, one for each N weights, with float activations; Conv: "
        "per-channel scales; default: none, 32 in mode weight-only",
        "N",
        ge=1,
    )
    format: BlockFormatChoice = _option(
        "plan",
        "auto",
        "how mode weight-only writes weights: matmulnbits (ONNX Runtime's operator), dequantize "
        "(DequantizeLinear of opset 21, for all runtimes); auto: the target's",
    )
    per_tensor: bool = _option("plan", False, "per-tensor weight scales instead of per-channel ones")
    exclude: Names = _option(
        "plan", (), "keep matching nodes in float: a name glob, or op:Softmax", "PATTERN"
    )
    override: Names = _option(
        "plan",
        (),
        "other options for matching nodes: 'head/*: method=entropy, activation=uint16, weight=int4, "
        "weight_method=absmax, per_tensor'; if several match, the last one counts",
        "PATTERN: ...",
    )
    include: Names = _option("plan", (), "quantize only matching nodes", "PATTERN")
    float_type: FloatType | None = _option(
        "types",
        None,
        "type of what is not quantized; keep: as in the given model; default: the target's (tensorrt: "
        "float16, onnxruntime: float32, qnn and openvino: keep); onnxq convert: float16",
    )
    io_types: IOTypes = _option(
        "types", "keep", "types of float inputs and outputs; keep: as in the given model; float: --float-type"
    )
    quantize_outputs: bool = _option(
        "plan", False, "also quantize the graph outputs and the nodes that produce them"
    )
    provider: Names = _option("running", (), "ONNX Runtime execution provider; default: the CPU", "NAME")
    threads: int = _option("running", 0, "number of threads; default: all", "N", ge=0)
    verify: Verify = _option(
        "running",
        "auto",
        "check with the target's runtime how it runs the model: auto (at most a minute), full, off",
    )
    seed: int = _option("running", 0, "random seed", "N", ge=0)

    @field_validator("preprocess")
    @classmethod
    def _check_preprocess(cls, text: str | None) -> str | None:
        with invalid():
            if text is not None:
                parse_preprocess(text)
        return text

    @field_validator("goal")
    @classmethod
    def _check_goal(cls, text: str | None) -> str | None:
        with invalid():
            if text is not None:
                parse_goal(text)
        return text

    @field_validator("override")
    @classmethod
    def _check_overrides(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        with invalid():
            for text in texts:
                parse_override(text, _CHOICES)
        return texts

    @model_validator(mode="after")
    def _check_ranges_have_one_source(self) -> QuantConfig:
        if self.from_table is not None and self.data is not None:
            raise ValueError("calibration data and a table (data, from_table) both give the ranges: use one")
        if self.from_table is not None and self.save_statistics is not None:
            raise ValueError("with a table (from_table) nothing is calibrated: no statistics to save")
        return self

    @model_validator(mode="after")
    def _check_table_formats(self) -> QuantConfig:
        if len(self.table_format) not in (0, len(self.table)):
            raise ValueError(
                f"{len(self.table_format)} formats for {len(self.table)} tables (table_format, table): "
                "give one for each, or none if the file names tell"
            )
        return self

    @model_validator(mode="after")
    def _check_mode(self) -> QuantConfig:
        check_mode(self, {name: field.default for name, field in type(self).model_fields.items()})
        return self

    @property
    def file(self) -> Path | None:
        """The file that `load` has read the options from; None if they do not come from a file."""
        return self._origin.file

    def changed(self, **options: Any) -> QuantConfig:
        """Change ``options`` and validate all of them.

        Raises:
            ConfigError: an option is unknown, has a wrong value, or does not go with the others.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return QuantConfig(**{**given, **options})._read_from(self.file)

    def _read_from(self, file: Path | None) -> QuantConfig:
        self._origin = _Origin(file)
        return self

    @property
    def tables(self) -> tuple[tuple[Path, str | None], ...]:
        """The tables to write, each with its format; None if the file name tells the format."""
        return tuple(zip(self.table, self.table_format or (None,) * len(self.table), strict=True))

    @property
    def pseudo_labels(self) -> bool:
        """Whether the float model's own results are the labels."""
        return isinstance(self.labels, str) and self.labels == "float"

    @property
    def overrides(self) -> tuple[Override, ...]:
        """The parsed ``override`` options."""
        return _parsed(self.override)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers to use, the preferred one first."""
        return self.provider or ("CPUExecutionProvider",)

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> QuantConfig:
        """Read a YAML file of options; ``overrides`` take precedence.

        Raises:
            ConfigError: the file cannot be read, or an option is unknown or has a wrong value.
        """
        read = read_mapping(path, "options", "method: entropy", ConfigError)
        options = {str(name).replace("-", "_"): value for name, value in read.items()}
        try:
            cls(**options)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        overridden = {loser for name in overrides for loser in _RIVALS.get(name, ())} - overrides.keys()
        kept = {name: value for name, value in options.items() if name not in overridden}
        return cls(**{**kept, **overrides})._read_from(path)

    def save(self, path: Path) -> None:
        """Write all options as YAML, for `load`, completely or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        import yaml

        if name := next((name for name in ("metric", "labels") if not is_text(getattr(self, name))), ""):
            raise ConfigError(f"{name}: an object in Python cannot be written to {path}: name a file")
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        try:
            with staged([path]) as beside:
                beside[path].write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the options to {path}: {error.strerror}") from error


_CHOICES = {
    "method": get_args(Method),
    "activation": get_args(ActivationType),
    "weight": get_args(WeightType),
    "weight_method": get_args(WeightMethod),
}
"""The options that `QuantConfig.override` may set, with their values."""


@lru_cache(maxsize=8)
def _parsed(overrides: tuple[str, ...]) -> tuple[Override, ...]:
    """Parse overrides; cached, because planning needs them for every node."""
    return tuple(parse_override(text, _CHOICES) for text in overrides)


_RIVALS = {
    "data": ("from_table",),
    "save_statistics": ("from_table",),
    "from_table": ("data", "save_statistics"),
}
"""Option -> options of a file that it replaces when it is given in addition to the file."""
