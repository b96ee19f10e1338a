"""Print what the commands found as JSON, for ``--json``: the same as the tables say, and more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from calibrators.statistics import Statistics
from calibrators.statistics.stability import stability
from onnxq.algorithms.sensitivity.analysis import Sensitivity
from onnxq.cli.terminal import print_json, warn
from onnxq.graph.files import size_on_disk
from onnxq.pipelines.conversions.cache import CacheResult
from onnxq.pipelines.conversions.convert import Converted
from onnxq.pipelines.inspection import Inspection
from onnxq.pipelines.report.plain import plain, plan_of, quality_of
from onnxq.pipelines.result import QuantResult
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import Speed
from onnxq.verify.verdict import Verdict


def print_result(result: QuantResult) -> None:
    """Print a quantization; the warnings go to stderr too."""
    print_json(result.to_dict())
    for warning in result.warnings:
        warn(warning)


def print_conversion(model: str, output: str, result: Converted | CacheResult) -> None:
    """Print a conversion to another float type, or of caches; the warnings go to stderr too.

    Args:
        model: path of the given model.
        output: path of the written model.
        result: the result to print.
    """
    content = plain(result)
    print_json({"model": model, "output": output, **content, "quality": quality_of(result.quality)})
    for warning in result.warnings:
        warn(warning)


def print_comparison(paths: Sequence[str], quality: Quality, speed: Speed, threads: int) -> None:
    """Print accuracy, size and speed of two models.

    Args:
        paths: paths of the float and of the quantized model.
        quality: accuracy of the quantized model.
        speed: run times of both.
        threads: number of threads of the timing; 0: all.
    """
    sizes = dict(zip(("float", "quantized"), map(size_on_disk, paths), strict=True))
    print_json(
        {
            "float": paths[0],
            "quantized": paths[1],
            "quality": quality_of(quality),
            "bytes": sizes,
            "speed": plain(speed),
            "threads": threads,
        }
    )


def print_statistics(model: str, file: str, statistics: Statistics, seconds: float) -> None:
    """Print what was collected, tensor by tensor.

    Args:
        model: path of the float model; empty if it is not known.
        file: path of the statistics.
        statistics: the statistics.
        seconds: duration.
    """
    tensors = {
        name: {
            "low": plain(each.low),
            "high": plain(each.high),
            "count": int(each.count),
            "growth": plain(stability(each).growth),
        }
        for name, each in statistics.items()
    }
    known = {"model": model} if model else {}
    print_json(
        {
            **known,
            "statistics": file,
            "samples": statistics.samples,
            "complete": statistics.complete,
            "tensors": tensors,
            "seconds": seconds,
        }
    )


def print_facts(**facts: Any) -> None:
    """Print named facts."""
    print_json(plain(facts))


def print_rows(rows: Sequence[Mapping[str, Any]], page: str) -> None:
    """Print the rows of a sweep, and where its page is."""
    print_json({"page": page, "jobs": plain(rows)})


def print_inspection(inspection: Inspection) -> None:
    """Print the outline and its plan."""
    groups = [
        {
            "runs": group.runs,
            "told": group.told,
            "nodes": [{"name": name, "op_type": op_type} for name, op_type in group.nodes],
        }
        for group in inspection.groups
    ]
    plan = plan_of(inspection.plan) if inspection.plan is not None else {}
    print_json({**plan, "groups": groups})


def print_ranking(ranking: Sequence[Sensitivity]) -> None:
    """Print the ranking; ``sqnr`` is null where the outputs did not change."""
    content = [
        {
            "tensors": list(one.group.tensors),
            "kind": one.kind,
            "read_by": [{"name": name, "op_type": op_type} for name, op_type in one.readers.items()],
            "noise": one.quality.noise,
            "sqnr": one.quality.sqnr if math.isfinite(one.quality.sqnr) else None,
            "agreement": one.quality.agreement,
            **_metric(one.quality),
        }
        for one in ranking
    ]
    print_json(content)


def _metric(quality: Quality) -> dict[str, Any]:
    return {} if quality.metric is None else {"metric": asdict(quality.metric)}


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print the verdicts."""
    print_json([asdict(one) for one in verdicts])
