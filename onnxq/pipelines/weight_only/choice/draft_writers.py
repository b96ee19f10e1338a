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
        judge: holds the samples, and compares models with the float model.
        alone: rounds each matrix alone.
        progress: called with the progress of the work.
    """

    judge: Judge
    alone: EachAlone
    progress: Progress

    @classmethod
    def make(cls, work: WeightWork, judge: Judge, progress: Progress) -> DraftWriter:
        """Measure what is known of the inputs of products without data."""
        config = work.scheme.config
        squares = input_squares(judge.reference, work.products, config, progress)
        return cls(judge, EachAlone(config.threads, squares), progress)

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
        run = StagedRun(self.judge.reference, work.products, self.judge.context.fit, threads)
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
    work, context = prepare(), judge.context
    started = time.perf_counter()
    plain = DraftWriter.make(work, judge, progress)
    if context is None or context.samples.synthetic or "none" in work.scheme.config.correct:
        plain.write(work, draft)
        return plain, ()
    if not _has_stages(work, judge, context):
        plain.write(work, draft)
        seconds = time.perf_counter() - started
        return plain, (Effect(NAME, 1.0, None, seconds, kept=False, too_long=_NO_STAGES),)
    able = DataDraftWriter(judge, plain.alone, progress)
    able.write(work, draft)
    after = judge.quality(draft)
    with beside(draft) as other:
        plain.write(prepare(), other)
        before = judge.quality(other)
        kept = figure(after) < figure(before)
        if not kept:
            move(other, draft)
    tokens = before.next_token, after.next_token
    divergence = None if tokens[0] is None or tokens[1] is None else (tokens[0].kl, tokens[1].kl)
    seconds = time.perf_counter() - started
    effect = Effect(NAME, before.noise, after.noise, seconds, kept, divergence=divergence)
    return (able if kept else plain), (effect,)


def figure(quality: Quality) -> float:
    """Return what decides, less is better: the KL divergence of the next token, or else the noise."""
    return quality.noise if quality.next_token is None else quality.next_token.kl


def _has_stages(work: WeightWork, judge: Judge, context: CorrectionContext) -> bool:
    return bool(StagedRun(judge.reference, work.products, context.fit[:1], context.config.threads).stages)


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
