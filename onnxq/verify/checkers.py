"""Who is asked about a Q/DQ model: the rules of its target first, then each runtime of the target."""

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
"""Who can be asked, by the name that `Target.runtimes` uses."""


def verify(subject: Subject) -> Iterator[Verdict]:
    """Legality first, then each runtime of the target; one that nobody here can ask is said to be so."""
    yield check(subject)
    yield from ask_runtimes(subject)


def ask_runtimes(subject: Subject) -> Iterator[Verdict]:
    """What each runtime of the target says; one that is not here is "not checked"."""
    if not subject.target.runtimes:
        yield unchecked(subject.target.name, _no_runtime(subject.target))
    for name in subject.target.runtimes:
        if name not in RUNTIMES:
            yield unchecked(name, f"nothing here can ask {name}")
        elif not subject.quantized:
            yield unchecked(name, "nothing is quantized")
        else:
            yield RUNTIMES[name](subject)


def _no_runtime(target: Target) -> str:
    return f"there is no runtime of {target.name} to ask: only its rules were checked"
