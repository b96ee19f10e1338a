"""Write a model with weights chosen with data and without, and keep what is better on held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq.algorithms.effect import Effect
from onnxq.core.progress import Progress
from onnxq.pipelines.weight_only.choice.input_squares import input_squares
from onnxq.pipelines.weight_only.choice.rounding import EachAlone
from onnxq.pipelines.weight_only.choice.sequential_rounding import SequentialRounding
from onnxq.pipelines.weight_only.choice.staged_run import StagedRun
from onnxq.pipelines.weight_only.judgement import Judge
from onnxq.pipelines.weight_only.streaming import WeightWork, write_streamed
from onnxq.verify.accuracy import Quality

NAME = "rounding with data"
"""The name of the correction."""


def write_better(
    prepare: Callable[[], WeightWork], judge: Judge, draft: Path, progress: Progress
) -> tuple[Effect, ...]:
    """Write a model to ``draft``; with given samples, choose its weights with them if that is better.

    Args:
        prepare: makes the work anew; writing changes its model.
        judge: holds the samples, and compares models with the float model.
        draft: the file to write.
        progress: called with the progress of the work.

    Returns:
        What rounding with data gave; nothing without data.
    """
    work, context = prepare(), judge.context
    config = work.scheme.config
    threads = config.threads
    alone = EachAlone(threads, input_squares(judge.reference, work.products, config, progress))
    if context is None or context.samples.synthetic or "none" in config.correct:
        write_streamed(work, alone, draft, progress)
        return ()
    started = time.perf_counter()
    run = StagedRun(judge.reference, work.products, context.fit, threads)
    if not run.stages:
        write_streamed(work, alone, draft, progress)
        seconds = time.perf_counter() - started
        return (Effect(NAME, 1.0, None, seconds, kept=False, too_long=_NO_STAGES),)
    write_streamed(work, SequentialRounding(run, threads, progress), draft, progress)
    del run
    after = judge.quality(draft)
    with _beside(draft) as other:
        write_streamed(prepare(), alone, other, progress)
        before = judge.quality(other)
        kept = figure(after) < figure(before)
        if not kept:
            _move(other, draft)
    seconds = time.perf_counter() - started
    tokens = before.next_token, after.next_token
    divergence = None if tokens[0] is None or tokens[1] is None else (tokens[0].kl, tokens[1].kl)
    return (Effect(NAME, before.noise, after.noise, seconds, kept, divergence=divergence),)


def figure(quality: Quality) -> float:
    """Return what decides, less is better: the KL divergence of the next token, or else the noise."""
    return quality.noise if quality.next_token is None else quality.next_token.kl


_NO_STAGES = "the model cannot be run in parts, because its products are in control flow or it has such nodes"


@contextmanager
def _beside(draft: Path) -> Iterator[Path]:
    """Give a file of the same name in a temporary folder beside it."""
    with TemporaryDirectory(prefix="other-", dir=draft.parent) as folder:
        yield Path(folder) / draft.name


def _move(source: Path, target: Path) -> None:
    """Move a model and its data file, if any, over another one."""
    for ending in (".data", ""):
        new, old = Path(f"{source}{ending}"), Path(f"{target}{ending}")
        if new.exists():
            new.replace(old)
        else:
            old.unlink(missing_ok=True)
