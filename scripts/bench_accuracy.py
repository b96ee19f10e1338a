"""Measure the accuracy of quantized models by correction, compared with `onnxruntime.quantization`.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

import bench
import cases
import evaldata
from bench import Figure, Floats, Place, Sections, at_least, at_most
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from cases import Case
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.verify.latency import race

DEFAULTS: tuple[str, ...] = QuantConfig().correct
LEARNED = (*DEFAULTS, "adaround")
FOUR_BITS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "uint4": {"none": ("none",), "default": DEFAULTS, "adaround": LEARNED},
    "int4": {"none": ("none",), "default": DEFAULTS},
}

PEER_METHODS = ("minmax", "percentile")
TARGETS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Score:
    """A model's outputs on the evaluation data, with their SQNR (dB) and agreement (%) against float."""

    outputs: Floats
    sqnr: float
    agreement: float


class Judge:
    """Measures models against the float model of a case, by the first output."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.reference = bench.outputs(case.model, case.evaluation())

    def score(self, model: Path) -> Score:
        """Evaluate ``model``; agreement is in percent."""
        outputs = bench.outputs(model, self._case.evaluation())
        return Score(outputs, sqnr(self.reference, outputs), bench.agreement(self.reference, outputs))


def lite0(place: Place) -> list[Figure]:
    """EfficientNet-Lite0, the default command: 100 pictures to calibrate, 400 to evaluate."""
    case, ours, plain = _case(place, "lite0"), place.work / "ours.onnx", place.work / "plain.onnx"
    run = bench.quantize(case, ours)
    bench.quantize(case, plain, *_correct(("none",)))
    judge, sample = Judge(case), Sample("", next(iter(case.evaluation())))
    mine, before = judge.score(ours), judge.score(plain)
    peers = _peers(place, case, judge, {method: ("--method", method) for method in PEER_METHODS})
    speeds = [race((case.model, path), sample, seconds=5).ratio for path in (ours, plain)]
    return [
        at_least("SQNR, dB (target: 27)", mine.sqnr, 25),
        Figure("SQNR without corrections, dB", before.sqnr),
        at_least("agreement with float, %", mine.agreement, 99),
        Figure("agreement without corrections, %", before.agreement),
        at_most("whole command, s", run.seconds, 15, form="{:.1f}"),
        at_most("peak memory, MB", run.megabytes, 1000, form="{:.0f}"),
        at_least("speed, of the model without corrections", speeds[0] / speeds[1], 0.97, form="{:.3f}"),
        Figure("speed, times float, one thread", speeds[0]),
        *_against(peers, mine),
    ]


def tensorrt(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 for TensorRT (symmetric int8), run as Q/DQ by ONNX Runtime."""
    case, ours = _case(place, "lite0"), place.work / "ours.onnx"
    bench.quantize(case, ours, "--target", "tensorrt")
    judge = Judge(case)
    mine = judge.score(ours)
    symmetric = ("--activation", "int8", "--symmetric")
    peers = _peers(place, case, judge, {method: ("--method", method, *symmetric) for method in PEER_METHODS})
    return [
        at_least("SQNR, dB", mine.sqnr, 23),
        *_against(peers, mine),
    ]


def w4(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 with 4-bit weights, per channel, and 8-bit activations.

    The goal applies to the type with zero points, which is more accurate, and neither larger nor slower.
    """
    case = _case(place, "lite0")
    judge = Judge(case)
    figures: list[Figure] = []
    for weight, ways in FOUR_BITS.items():
        peers = _peers(place, case, judge, {weight: ("--weight", weight)})
        for name, corrections in ways.items():
            model = place.work / f"{weight}.onnx"
            run = bench.quantize(case, model, "--weight", weight, *_correct(corrections))
            mine, what = judge.score(model), f"{weight}, {name}"
            goals = weight == "uint4" and name != "none"
            figures += [at_least(f"{what}: agreement, %", mine.agreement, 95)] * goals
            figures += _against(peers, mine, f"{what}: ")
            figures.append(Figure(f"{what}: whole command, s", run.seconds, form="{:.0f}"))
    size = (place.work / "uint4.onnx").stat().st_size / case.model.stat().st_size
    return [*figures, Figure("file size, of float", size, form="{:.3f}")]


def minilm(place: Place) -> list[Figure]:
    """The sentence encoder on STS-B: 200 training sentences to calibrate, the test set to evaluate."""
    case, ours = _case(place, "minilm"), place.work / "ours.onnx"
    run = bench.quantize(case, ours)
    judge = Judge(case)
    mine = judge.score(ours)
    kinds = {"static": (), "dynamic": ("--dynamic",)}
    peers = _peers(place, case, judge, kinds)
    rank, ranks = _spearman(place, mine.outputs), {k: _spearman(place, p.outputs) for k, p in peers.items()}
    return [
        Figure("Spearman of the float model", _spearman(place, judge.reference)),
        at_least("Spearman", rank, 81.9),
        at_least("SQNR, dB", mine.sqnr, 21),
        *(Figure(f"Spearman; peer: {kind}", rank, peer=other) for kind, other in ranks.items()),
        *(Figure(f"SQNR, dB; peer: {kind}", mine.sqnr, peer=peer.sqnr) for kind, peer in peers.items()),
        Figure("whole command, s", run.seconds, form="{:.1f}"),
    ]


def resnet20(place: Place) -> list[Figure]:
    """ResNet-20 on CIFAR-10: 200 training pictures to calibrate, the 2,000 of the test set to evaluate."""
    case, ours = _case(place, "resnet20"), place.work / "ours.onnx"
    bench.quantize(case, ours)
    judge = Judge(case)
    mine = judge.score(ours)
    peers = _peers(place, case, judge, {"minmax": ()})
    _, labels = evaldata.cifar(place.shared, "test-2k")
    return [
        Figure("top-1 accuracy of the float model, %", bench.accuracy(judge.reference, labels)),
        Figure("top-1 accuracy, %", bench.accuracy(mine.outputs, labels)),
        *(
            Figure(f"top-1 accuracy of the peer, {kind}, %", bench.accuracy(peer.outputs, labels))
            for kind, peer in peers.items()
        ),
        *_against(peers, mine),
    ]


def goal(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 with --goal agreement>=0.995: which nodes are kept in float, and what that costs."""
    case, ours = _case(place, "lite0"), place.work / "ours.onnx"
    run = bench.quantize(case, ours, "--goal", "agreement>=0.995")
    print(run.output)
    score = Judge(case).score(ours)
    _, integer, left_float = bench.kernels(ours)
    sample = Sample("", next(iter(case.evaluation())))
    return [
        at_least("agreement with float on the evaluation data, %", score.agreement, 99.5),
        Figure("SQNR, dB", score.sqnr),
        Figure("float kernels of Conv, Gemm and MatMul", left_float, form="{:.0f}"),
        Figure("integer ones", integer, form="{:.0f}"),
        Figure("speed, times float, one thread", race((case.model, ours), sample, seconds=5).ratio),
        Figure("whole command, s", run.seconds, form="{:.1f}"),
    ]


def w4_goal(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 with --weight int4 --goal agreement>=0.97: which weights get 8 bits."""
    case, ours = _case(place, "lite0"), place.work / "ours.onnx"
    run = bench.quantize(case, ours, "--weight", "int4", "--goal", "agreement>=0.97")
    print(run.output)
    score = Judge(case).score(ours)
    bits = Counter(ir.DataType(tensor.data_type).name for tensor in onnx.load(ours).graph.initializer)
    return [
        at_least("agreement with float on the evaluation data, %", score.agreement, 97),
        Figure("SQNR, dB", score.sqnr),
        Figure("4-bit weights", bits["INT4"], form="{:.0f}"),
        Figure("file size, of float", ours.stat().st_size / case.model.stat().st_size, form="{:.3f}"),
        Figure("whole command, s", run.seconds, form="{:.1f}"),
    ]


def steps(place: Place) -> list[Figure]:
    """SQNR in dB on the evaluation data, with one more correction in each row."""
    figures: list[Figure] = []
    for name in cases.CASES:
        case = _case(place, name)
        judge = Judge(case)
        for target in TARGETS:
            for chosen in _prefixes():
                model = place.work / "step.onnx"
                bench.quantize(case, model, "--target", target, *_correct(chosen))
                title = f"{name}, {target}: {' + '.join(chosen)}"
                figures.append(Figure(title, judge.score(model).sqnr))
    return figures


SECTIONS: Sections = {
    "lite0": lite0,
    "tensorrt": tensorrt,
    "w4": w4,
    "minilm": minilm,
    "resnet20": resnet20,
    "goal": goal,
    "w4-goal": w4_goal,
    "steps": steps,
}


def _case(place: Place, name: str) -> Case:
    return cases.CASES[name](place.shared, place.work / "data" / name)


def _prefixes() -> Iterator[tuple[str, ...]]:
    """Yield no correction, the first default correction, the first two, and so on."""
    yield ("none",)
    yield from (DEFAULTS[:count] for count in range(1, len(DEFAULTS) + 1))


def _correct(names: Iterable[str]) -> list[str]:
    return [word for name in names for word in ("--correct", name)]


def _peers(place: Place, case: Case, judge: Judge, kinds: Mapping[str, tuple[str, ...]]) -> dict[str, Score]:
    """Evaluate the peer's models of several kinds, without those that cannot be made or run."""
    scores = {}
    for kind, options in kinds.items():
        model = place.work / f"peer-{kind}.onnx"
        try:
            bench.quantize_peer(case, model, *options)
            scores[kind] = judge.score(model)
        except (RuntimeError, CalibrationError) as error:
            print(f"onnxruntime.quantization, {kind}, {case.model.name}: {str(error).splitlines()[-1]}")
    return scores


def _against(peers: Mapping[str, Score], mine: Score, prefix: str = "") -> Iterator[Figure]:
    """Yield SQNR and agreement next to those of each peer model, or alone if there is none."""
    rows: Mapping[str, Score | None] = {f"; peer: {kind}": score for kind, score in peers.items()} or {
        "": None
    }
    for which, peer in rows.items():
        sqnr, agreement = (peer.sqnr, peer.agreement) if peer else (None, None)
        yield Figure(f"{prefix}SQNR, dB{which}", mine.sqnr, peer=sqnr)
        yield Figure(f"{prefix}agreement, %{which}", mine.agreement, peer=agreement)


def _spearman(place: Place, embeddings: Floats) -> float:
    """Compute Spearman's rank correlation from the embeddings of all first, then all second sentences."""
    first, _, scores = evaldata.stsb(place.shared, "test")
    return evaldata.spearman(embeddings[: len(first)], embeddings[len(first) :], scores)


if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
