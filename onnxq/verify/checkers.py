"""Run the checks of a Q/DQ model: the rules of its target first, then each runtime of the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxq.targets.target import Target
from onnxq.verify import onnxruntime, openvino, tensorrt
from onnxq.verify.legality import check
from onnxq.verify.subject import Checker, Subject
from onnxq.verify.verdict import Verdict, unchecked

RUNTIMES: Mapping[str, Checker] = {
    onnxruntime.RUNTIME: onnxruntime.check,
    tensorrt.RUNTIME: tensorrt.check,
    openvino.RUNTIME: openvino.check,
}
"""The checks that run a model in a runtime, by the name that `Target.runtimes` uses."""


def verify(subject: Subject) -> Iterator[Verdict]:
    """Check legality first, then each runtime of the target; an unavailable runtime is "not checked"."""
    yield check(subject)
    yield from ask_runtimes(subject)


def ask_runtimes(subject: Subject) -> Iterator[Verdict]:
    """Yield the verdict of each runtime of the target; an unavailable runtime is "not checked"."""
    if not subject.target.runtimes:
        yield unchecked(subject.target.name, _no_runtime(subject.target))
    for name in subject.target.runtimes:
        if name not in RUNTIMES:
            yield unchecked(name, f"onnxq has no check that runs {name}")
        elif not subject.quantized:
            yield unchecked(name, "nothing is quantized")
        else:
            yield RUNTIMES[name](subject)


def _no_runtime(target: Target) -> str:
    return f"onnxq cannot run a runtime of {target.name}: only its rules were checked"
