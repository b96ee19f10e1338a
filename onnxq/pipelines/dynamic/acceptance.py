"""The written model before it gets its name: does it load, is it close, what runs, how fast?"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.algorithms.autotune.apply import LEAST_TURNS, QUICK, RACE_SECONDS, RACE_TURNS
from onnxq.calibration.sample_split import Samples, in_batches
from onnxq.core.config import QuantConfig
from onnxq.graph.nodes import all_nodes
from onnxq.pipelines.acceptance import output_warnings
from onnxq.pipelines.dynamic.scheme import DynamicScheme, WeightForm
from onnxq.verify.accuracy import AccuracyEvaluator, Quality
from onnxq.verify.latency import Speed, significantly_faster, time_interleaved
from onnxq.verify.onnxruntime import RUNTIME
from onnxq.verify.verdict import Verdict, judged

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"

READ = 256
"""Samples to fit on at most: what they show are sizes, which more of them hardly change."""

INTEGER_KERNELS = frozenset(
    {
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"),
        *("DynamicQuantizeLSTM", "QAttention"),
    }
)
"""What operators become in ONNX Runtime."""


@dataclass
class DynamicAcceptance:
    """Compares and times the written model; what came of it stays here.

    Attributes:
        original: the float model as the user has it.
        samples: where those to judge by come from.
        evaluator: knows the original and these samples.
        scheme: what was asked for.
        quality: against the original; None if it was not measured.
        speed: None if nothing was timed: another runtime runs the target, or there is no sample.
        verdicts: what ONNX Runtime makes of it, for its targets.
    """

    original: str | os.PathLike[str]
    samples: Samples
    evaluator: AccuracyEvaluator
    scheme: DynamicScheme
    quality: Quality | None = None
    speed: Speed | None = None
    verdicts: tuple[Verdict, ...] = ()
    _slower: bool = False

    def run(self, draft: Path) -> None:
        """Load it, compare it, time it.

        Raises:
            CalibrationError: it does not load, or a model does not take a sample that was given.
        """
        if self.scheme.form is WeightForm.INTEGERS:
            self.verdicts = (self._kernels(draft),)
        quality = self.evaluator.evaluate(draft)
        if quality.samples:
            self.quality = quality
            self._race(draft)

    def _kernels(self, draft: Path) -> Verdict:
        """What operators became, in bodies of control flow too."""
        with tempfile.TemporaryDirectory(prefix="dynamic-", ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "fused.onnx"
            open_session(draft, threads=1, save_fused=file)
            kinds = [node.op_type for node in all_nodes(ir.load(file))]
        found = Counter(kind for kind in kinds if kind in INTEGER_KERNELS)
        summary = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
        return judged(RUNTIME, f"integer kernels: {summary or 'none'}", counts=found)

    def _race(self, draft: Path) -> None:
        config = self.scheme.config
        if RUNTIME not in self.scheme.target.runtimes or config.providers != (CPU,):
            return
        sessions = [open_session(p, threads=config.threads, exact=False) for p in (self.original, draft)]
        times = time_interleaved(
            sessions, self.evaluator.samples[0], seconds=RACE_SECONDS, least=LEAST_TURNS, most=RACE_TURNS
        )
        self.speed = Speed.of(times)
        self._slower = significantly_faster([times], 0, 1)

    @property
    def judged_on(self) -> str:
        """What kind of samples, in words."""
        return "nothing" if self.quality is None else self.samples.eval_source

    @property
    def warnings(self) -> Iterator[str]:
        """Why the result should not be trusted, or is not worth much."""
        yield from self.samples.warnings
        if self.quality is None:
            yield "accuracy was not measured: made-up inputs do not suit the model. Give samples with --data."
        if self.speed is not None and self._slower and self.speed.float_seconds > QUICK:
            yield (
                f"SLOWER THAN FLOAT on this machine: {self.speed.int8_seconds * 1e3:.2f} ms a run instead of "
                f"{self.speed.float_seconds * 1e3:.2f} ms. Try another --include or --exclude."
            )
        yield from output_warnings(self.quality, "Keep sensitive nodes float with --exclude.")


def make_dynamic_evaluator(
    original: str | os.PathLike[str], simple: ir.Model, samples: Samples, config: QuantConfig
) -> AccuracyEvaluator:
    """Knows the original as the user has it, and samples that nothing is fitted on; the first are read."""
    for _ in islice(samples, READ):
        pass
    return AccuracyEvaluator(
        original,
        in_batches(samples.eval_samples, simple, config),
        providers=config.providers,
        threads=config.threads,
        on_bad=unsuited if samples.synthetic else samples.refused,
    )


def unsuited(error: CalibrationError, samples: int) -> None:
    """Made-up inputs fit a model or do not."""
    logger.info("made-up inputs do not suit the model: %s", error)
