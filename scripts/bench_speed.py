"""Compare the speed of quantized models with float and `onnxruntime.quantization`, also where int8 is slower.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

import bench
import cases
import speed_models
import zoo
from bench import Figure, Place, Sections, at_least
from calibrators.data.samples import Sample
from cases import Case
from onnxq.verify.latency import race

THREADS = (1, 0)
"""One thread, and all threads (0)."""

SECONDS = 3.0

NOT_SLOWER = 0.98
"""The limit of the speed relative to float where autotune may keep everything in float. The two models are
then equal, and this is the noise of timing on a busy machine."""

SAMPLES = 20


def depthwise(place: Place) -> list[Figure]:
    """A small depthwise network with random weights: integers are slower."""
    return _figures(place, _random(place, speed_models.depthwise(place.work / "depthwise.onnx")), NOT_SLOWER)


def mobile(place: Place) -> list[Figure]:
    """A network like MobileNetV3 with random weights: integers are slower in places."""
    return _figures(place, _random(place, speed_models.mobile(place.work / "mobile.onnx")), NOT_SLOWER)


def shufflenet(place: Place) -> list[Figure]:
    """ShuffleNet of the onnx package: integers are slower nearly everywhere."""
    return _figures(place, _random(place, zoo.light("shufflenet")), NOT_SLOWER)


def lite0(place: Place) -> list[Figure]:
    """EfficientNet-Lite0: integers are faster, and autotune must keep that."""
    case = cases.lite0(place.shared, place.work / "beside")
    return [*_beside(place, case), *_figures(place, case, 1.3)]


def resnet50(place: Place) -> list[Figure]:
    """ResNet-50 of the onnx package: large convolutions, compared with the peer."""
    return _beside(place, _random(place, zoo.light("resnet50")), ("--correct", "none"))


def minilm(place: Place) -> list[Figure]:
    """The sentence encoder on sentences of STS-B, compared with the peer."""
    return _beside(place, cases.minilm(place.shared, place.work))


SECTIONS: Sections = {
    "depthwise": depthwise,
    "mobile": mobile,
    "shufflenet": shufflenet,
    "lite0": lite0,
    "resnet50": resnet50,
    "minilm": minilm,
}


def _beside(place: Place, case: Case, options: tuple[str, ...] = ()) -> list[Figure]:
    """Measure on one thread the speed relative to float, and to the peer in turns."""
    sample, peer, ours = (
        Sample("", next(iter(case.evaluation()))),
        _peer(place, case),
        place.work / "ours.onnx",
    )
    bench.quantize(case, ours, *options)
    speeds = [race((case.model, model), sample, seconds=SECONDS).ratio for model in (ours, peer) if model]
    figures = [Figure("times as fast as float, one thread", speeds[0], peer=speeds[1] if peer else None)]
    if peer is not None:
        against = race((peer, ours), sample, seconds=2 * SECONDS).ratio
        figures.append(at_least("times as fast as the peer, in turns", against, 1.0, form="{:.3f}"))
    return figures


def _random(place: Place, model: Path) -> Case:
    """Make a case of the model with random pictures."""
    value = onnx.load(model, load_external_data=False).graph.input[0]
    shape = [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    pictures = [{value.name: rng.normal(size=shape).astype(np.float32)} for _ in range(SAMPLES)]
    return Case(model, cases.batches(place.work / "pictures", pictures), lambda: pictures)


def _figures(place: Place, case: Case, wanted: float) -> list[Figure]:
    """Measure the speed relative to float, as planned for VNNI and as tuned on this machine."""
    sample = Sample("", next(iter(case.evaluation())))
    peer = _peer(place, case)

    def timed(model: Path, threads: int) -> float:
        return race((case.model, model), sample, threads=threads, seconds=SECONDS).ratio

    def with_threads(threads: int) -> Iterator[Figure]:
        words = f"times as fast as float, {threads or 'all'} thread{'s' if threads != 1 else ''}"
        plain, tuned = (place.work / f"{kind}-{threads}.onnx" for kind in ("plain", "tuned"))
        bench.quantize(case, plain)
        run = bench.quantize(case, tuned, "--autotune", "full", "--threads", str(threads))
        yield Figure(words, timed(plain, threads), peer=timed(peer, threads) if peer else None)
        yield at_least(f"{words}, --autotune full", timed(tuned, threads), wanted)
        nodes = sum(node.op_type == "DequantizeLinear" for node in onnx.load(tuned).graph.node)
        yield Figure("   DequantizeLinear nodes left", nodes, form="{:.0f}")
        yield Figure("   s, the whole command", run.seconds)

    return [figure for threads in THREADS for figure in with_threads(threads)]


def _peer(place: Place, case: Case) -> Path | None:
    """Make the peer's model; None if the peer fails."""
    model = place.work / "peer.onnx"
    try:
        bench.quantize_peer(case, model)
    except RuntimeError:
        print(f"onnxruntime.quantization cannot quantize {case.model.name} as it is")
        return None
    return model


if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
