"""Weight-only quantization: matrices in blocks of 2 to 8 bits, written as they are read.

::

    prepare      make the model one graph, store copies of matrices once (share_transposed.py), and choose the
                 products (products.py, embedding_tables.py)
    write        round each matrix and write it before the next one is read (streaming.py); with data, in the
                 order in which they run, and once more without, to keep what is better (choice/)
    check        load the file, and compare it with the float model if that is small (judgement.py)

No weight is read as a whole before its turn, so that a model may be larger than the memory.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

import onnx_ir as ir

from onnxq.algorithms.effect import Effect
from onnxq.calibration.sample_split import Data, origin
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError
from onnxq.core.goal import parse_goal
from onnxq.core.plan import FloatNode, QuantPlan
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import Wanted, tell_unused
from onnxq.graph.files import external_files, load, write_made, written_together
from onnxq.graph.nodes import name_of
from onnxq.graph.passes import single
from onnxq.graph.share_transposed import share_equal, share_transposed
from onnxq.pipelines.preflight import as_onnxq_errors, check_files, check_is_float, check_patterns
from onnxq.pipelines.report.evidence.material import Evidence, attempt
from onnxq.pipelines.report.evidence.outline import outline
from onnxq.pipelines.report.report import Request
from onnxq.pipelines.result import QuantResult, conclude
from onnxq.pipelines.weight_only.block_scheme import find_block_scheme
from onnxq.pipelines.weight_only.choice.draft_writers import write_better
from onnxq.pipelines.weight_only.choice.goal_search import Mix, reach
from onnxq.pipelines.weight_only.embedding_tables import TiedTable, find_tied
from onnxq.pipelines.weight_only.judgement import make_judge
from onnxq.pipelines.weight_only.products import plan_products
from onnxq.pipelines.weight_only.streaming import WeightWork
from onnxq.targets.lookup import get_target

__all__ = ["prepare_weights", "quantize_weights"]

Path = str | os.PathLike[str]

_STREAMED = "mode weight-only holds one matrix in memory at a time, and never both models"


def quantize_weights(
    model: Path,
    output: Path,
    config: QuantConfig | None = None,
    data: Data | None = None,
    progress: Progress = silent,
) -> QuantResult:
    """Quantize the matrices of ``model`` in blocks and write it to ``output``, completely or not at all.

    Args:
        model: path of a float ONNX model.
        output: path of the model to write.
        config: the options, with or without ``mode="weight-only"``; defaults if None.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches, to compare both models
            on, and to choose weights with. Synthetic inputs if None, for small models.
        progress: called with the progress of the work.

    Raises:
        OnnxqError: the model cannot be quantized; the message says why, and ``output`` is left unchanged.
    """
    started = time.perf_counter()
    config = (config or QuantConfig()).changed(mode="weight-only")
    data = config.data if data is None else data
    tell_unused(Wanted(config, has_data=data is not None))
    check_files(model, output, data, config)
    with as_onnxq_errors(model), written_together():
        progress("reading the model")
        work = _prepare(model, config)
        judge = make_judge(os.fspath(model), work.model.clone(), data, config, progress)
        effects, mixes = list[Effect](), list[Mix]()

        def make(draft: pathlib.Path) -> None:
            writer, tried = write_better(lambda: _prepare(model, config), judge, draft, progress)
            effects.extend(tried)
            if config.goal is not None:
                goal = parse_goal(config.goal)
                mixes.append(reach(goal, writer, draft))

        accepted = write_made(output, make, judge.accept)
        mix = mixes[0] if mixes else None
        made_by = work if mix is None else mix.work
        plan = replace(made_by.plan, stored_weights=made_by.stored)
        return conclude(
            QuantResult(
                request=Request(os.fspath(model), os.fspath(output), origin(data), config),
                plan=plan,
                mix=() if mix is None else tuple(mix.rows()),
                make_table=_no_table,
                quality=accepted.quality,
                verdicts=accepted.verdicts,
                judged_on=judge.samples.eval_source if accepted.quality else "nothing",
                skipped=judge.samples.skipped,
                warnings=tuple(judge.warnings(accepted)),
                speed=accepted.speed,
                corrections=tuple(effects),
                int8_bytes=accepted.size,
                constant_bytes=accepted.constants,
                evidence=_evidence(judge.reference, plan) if config.report else None,
            ),
            started,
        )


def _evidence(reference: ir.Model, plan: QuantPlan) -> Evidence:
    """What a report can tell without running both models."""
    missing = dict.fromkeys(("layers", "times", "samples"), _STREAMED)
    return Evidence(
        outline=attempt("outline", lambda: outline(reference, plan, None), missing), missing=missing
    )


def prepare_weights(model: Path, config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """Make the model one graph, and choose the nodes to quantize.

    Raises:
        ModelError: the model cannot be read, is quantized already, or has nothing to quantize.
        TargetError: the target takes no such weights.
    """
    work = _prepare(model, config)
    return work.model, work.plan


def _prepare(model: Path, config: QuantConfig) -> WeightWork:
    scheme = find_block_scheme(get_target(config.target), config)
    original = load(model)
    check_is_float(original, model)
    graph = single(original, scheme.opset)
    check_patterns(graph, config)
    share_equal(graph)
    share_transposed(graph)
    planned, tied = find_tied(graph, plan_products(graph, scheme), scheme)
    plan = _plan(
        scheme.target.name, [product.node for product in planned.products], tied, planned.float_nodes
    )
    if not plan.integer_nodes:
        reasons = list(dict.fromkeys(node.reason for node in plan.float_nodes.values()))
        raise ModelError(
            f"{model}: no weights to quantize in blocks for target {scheme.target.name}: "
            f"{'; '.join(reasons[:3]) or 'it has no MatMul or Gemm'}."
        )
    return WeightWork(graph, planned.products, tied, scheme, plan, bool(external_files(original)))


def _plan(
    target: str, products: Iterable[ir.Node], tied: Iterable[TiedTable], floats: dict[ir.Node, str]
) -> QuantPlan:
    nodes = [*products]
    for table in tied:
        nodes += [*table.look_ups, *(product.node for product in table.products)]
    return QuantPlan(
        target,
        points=(),
        biases=(),
        groups={},
        integer_nodes={name_of(node): node.op_type for node in nodes},
        float_nodes={name_of(node): FloatNode(node.op_type, reason) for node, reason in floats.items()},
    )


def _no_table() -> NoReturn:
    raise ConfigError("there is no calibration table: in mode weight-only nothing is calibrated")
