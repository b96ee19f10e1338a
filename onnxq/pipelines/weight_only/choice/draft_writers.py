"""Write a model with weights chosen with data and without, and keep what is better on held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.effect import Effect
from onnxq.core.progress import Progress
from onnxq.graph.files import data_files
from onnxq.pipelines.weight_only.choice.channel_scaling import NAME as EQUALIZE
from onnxq.pipelines.weight_only.choice.channel_scaling import ChannelScaling, choose_scaling
from onnxq.pipelines.weight_only.choice.input_squares import input_squares
from onnxq.pipelines.weight_only.choice.rounding import EachAlone
from onnxq.pipelines.weight_only.choice.sequential_rounding import SequentialRounding
from onnxq.pipelines.weight_only.choice.staged_run import StagedRun
from onnxq.pipelines.weight_only.judgement import Judge
from onnxq.pipelines.weight_only.streaming import WeightWork, write_streamed
from onnxq.verify.accuracy import Quality

NAME = "rounding with data"
"""The name of the correction."""

_NO_STAGES = "the model cannot be run in parts, because its products are in control flow or it has such nodes"


@dataclass(frozen=True)
class DraftWriter:
    """Writes models whose weights are chosen without data.

    Attributes:
        prepare: makes the work anew; writing changes its model.
        judge: holds the samples, and compares models with the float model.
        alone: rounds each matrix alone.
        progress: called with the progress of the work.
    """

    prepare: Callable[[], WeightWork]
    judge: Judge
    alone: EachAlone
    progress: Progress

    def write(self, work: WeightWork, draft: Path) -> None:
        """Write a model to ``draft``; the model of ``work`` is changed."""
        write_streamed(work, self.alone, draft, self.progress)


@dataclass(frozen=True)
class DataDraftWriter(DraftWriter):
    """Writes models whose weights are chosen with data."""

    def write(self, work: WeightWork, draft: Path) -> None:
        """Write a model to ``draft``; the model of ``work`` is changed."""
        assert self.judge.context is not None
        self.judge.context.evaluator.release()
        threads = self.alone.threads
        run = StagedRun(work.model, work.products, self.judge.context.fit, threads)
        write_streamed(work, SequentialRounding(run, threads, self.progress), draft, self.progress)


def write_better(
    prepare: Callable[[], WeightWork], judge: Judge, draft: Path, progress: Progress
) -> tuple[DraftWriter, tuple[Effect, ...]]:
    """Write a model to ``draft``; with given samples, choose its weights with them if that is better.

    Args:
        prepare: makes the work anew; writing changes its model.
        judge: holds the samples, and compares models with the float model.
        draft: the file to write.
        progress: called with the progress of the work.

    Returns:
        What wrote the model that was kept, and what rounding with data gave; nothing without data.
    """
    context = None if judge.samples.synthetic else judge.context
    scaling = _measured_scaling(prepare(), judge, progress)
    started, threads = time.perf_counter(), judge.config.threads
    plain = DraftWriter(
        lambda: scaling.applied(prepare()), judge, EachAlone(threads, scaling.squares), progress
    )
    work = plain.prepare()
    if context is None or "rounding" not in judge.config.correct:
        plain.write(work, draft)
        return plain, scaling.effects
    if not _has_stages(work, context):
        plain.write(work, draft)
        seconds = time.perf_counter() - started
        left_out = Effect(NAME, 1.0, None, seconds, kept=False, too_long=_NO_STAGES)
        return plain, (*scaling.effects, left_out)
    able = DataDraftWriter(plain.prepare, judge, plain.alone, progress)
    before, after, kept = _better(plain, able, draft)
    tokens = before.next_token, after.next_token
    divergence = None if tokens[0] is None or tokens[1] is None else (tokens[0].kl, tokens[1].kl)
    seconds = time.perf_counter() - started
    effect = Effect(NAME, before.noise, after.noise, seconds, kept, divergence=divergence)
    return (able if kept else plain), (*scaling.effects, effect)


def _better(plain: DraftWriter, able: DraftWriter, draft: Path) -> tuple[Quality, Quality, bool]:
    """Write ``draft`` by both; return the quality of both, and whether ``able`` is better and was kept."""
    able.write(able.prepare(), draft)
    after = able.judge.quality(draft)
    with beside(draft) as other:
        plain.write(plain.prepare(), other)
        before = plain.judge.quality(other)
        kept = figure(after) < figure(before)
        if not kept:
            move(other, draft)
    return before, after, kept


def _measured_scaling(work: WeightWork, judge: Judge, progress: Progress) -> ChannelScaling:
    """Measure what inputs of products are like, on given samples if there are any, and choose factors."""
    context = None if judge.samples.synthetic else judge.context
    samples = () if context is None else context.fit
    squares = input_squares(work.model, work.products, judge.config, progress, samples)
    if EQUALIZE not in judge.config.correct:
        return ChannelScaling(squares)
    progress("scaling channels")
    return choose_scaling(work, squares)


def figure(quality: Quality) -> float:
    """Return what decides, less is better: the KL divergence of the next token, or else the noise."""
    return quality.noise if quality.next_token is None else quality.next_token.kl


def _has_stages(work: WeightWork, context: CorrectionContext) -> bool:
    return bool(StagedRun(work.model, work.products, context.fit[:1], context.config.threads).stages)


@contextmanager
def beside(draft: Path) -> Iterator[Path]:
    """Give a file of the same name in a temporary folder beside it."""
    with TemporaryDirectory(prefix="other-", dir=draft.parent) as folder:
        yield Path(folder) / draft.name


def move(source: Path, target: Path) -> None:
    """Move a model and its data files, if any, over another one."""
    for new, old in zip((*data_files(source), source), (*data_files(target), target), strict=True):
        if new.exists():
            new.replace(old)
        else:
            old.unlink(missing_ok=True)
