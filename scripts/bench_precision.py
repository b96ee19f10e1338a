"""Half precision, FP8 and 16-bit activations: what onnxq makes of real and hard networks, beside its peers.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed. SQNR is
against the float32 model, on evaluation data; what is in half precision is rounded as hardware with kernels
for it does. Seconds are those of all processors together for the whole command, which other programs on the
machine hardly change.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import precision_models
from precision_peers import CONVERTERS, FP8, Made, Peers, accuracy, convert, quantize
from rich.console import Console
from rich.table import Table

import bench
import cases
import evaldata
from calibrators.session import checked_feeds, open_session
from cases import Case, Feeds
from onnxq.core.errors import OnnxqError
from onnxq.graph.files import load
from onnxq.graph.nodes import all_nodes, input_at, is_op
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.passes import plain
from onnxq.graph.walks import producer_of
from onnxq.targets.lookup import get_target
from onnxq.verify.process import run_in_process
from onnxq.verify.subject import SECONDS
from onnxq.verify.tensorrt import multiplies

NAMES = ("lite0", "minilm")

ENOUGH_TIME = ("--time-limit", "120")
"""Corrections must not depend on how busy the machine is: both sides of a comparison get all of them."""

GPUS = ("SM89", "SM120")
"""The GPU types that have FP8: Ada and Blackwell of workstations."""

MARGIN, REAL_MARGIN, HARD_SQNR, HALF_SIZE, MOST_SECONDS = 0.3, 0.1, 40.0, 0.51, 5.0
"""dB that a float16 model may lose against the float32 one; dB below the peers; dB on hard networks; size of
a float16 file, of float32's; processor seconds of the whole conversion."""

TENSORRT_GOALS = {"lite0": (24.5, 2), "minilm": (22.0, None)}
"""The least SQNR in dB, and the largest number of Casts."""

SIXTEEN_SQNR = 30.0

EVALUATED = {"lite0": 200, "minilm": 345, "resnet20": 10, "detector": 50}
"""The number of batches of a case to compare on; for MiniLM all 2,758 sentences of the test set, because the
first ones are mostly captions."""


@dataclass(frozen=True)
class Place:
    """What the sections need.

    Attributes:
        shared: the evaluation data.
        work: the working folder.
        peers: the peers.
    """

    shared: Path
    work: Path
    peers: Peers

    def case(self, name: str) -> Case:
        """Return a case of `cases`, its evaluation data shortened."""
        case = cases.CASES[name](self.shared, self.work / "data" / name)
        count = EVALUATED[name]
        return replace(case, evaluation=lambda: islice(case.evaluation(), count))


Row = tuple[str, ...]
"""The cells of a network; the last one names the goals that are missed."""


# --- half-precision inputs --------------------------------------------------------------------------


def half_inputs(place: Place) -> Iterator[Row]:
    """Models given in float16, bare command, beside the same models in float32."""
    for name in ("lite0", "resnet20", "minilm"):
        case = place.case(name)
        half = place.peers.convert("onnxruntime.transformers-io", case, place.work / f"{name}-half.onnx")
        yield _half_input(name, case, half, place)
    path, half_path = precision_models.detectors(place.work)
    images = [{"input": evaldata.picture(path, 128)} for path in _pictures(place, "calibration")]
    data = cases.batches(place.work / "data" / "detector", images)
    case = Case(path, data, lambda: _few_pictures(place))
    yield _half_input("detector", case, Made(half_path), place)


def _pictures(place: Place, split: str) -> list[Path]:
    return evaldata.imagenet_files(place.shared, split)


def _few_pictures(place: Place) -> list[Feeds]:
    files = _pictures(place, "evaluation")[: EVALUATED["detector"]]
    return [{"input": evaldata.picture(path, 128)} for path in files]


def _half_input(name: str, case: Case, half: Made, place: Place) -> Row:
    feeds, found = list(case.evaluation()), []
    for given, model in (("half", half.path), ("float", case.model)):
        made = Made(word=half.word)
        if model is not None:
            output = place.work / f"{name}-{given}-int8.onnx"
            made = quantize(replace(case, model=model), output, *ENOUGH_TIME)
        found.append((accuracy(case, made, feeds), _share(made.path, case.model)))
    (ours, size), (peer, other) = found
    missed = not _reaches(ours, peer - MARGIN if isinstance(peer, float) else 0.0)
    return name, _db(ours), _db(peer), size, other, _goals({"0.3 dB less": missed})


# --- TensorRT ---------------------------------------------------------------------------------------


def tensorrt(place: Place) -> Iterator[Row]:
    """Target tensorrt: int8, float16 around it."""
    for name in NAMES:
        case = place.case(name)
        made = quantize(case, place.work / f"{name}.onnx", "--target", "tensorrt", *ENOUGH_TIME)
        got = accuracy(case, made)
        if made.path is None:
            yield name, *[made.word] * 5, "all"
            continue
        layers, products = _engine(made.path, next(iter(case.evaluation())), "SM86")
        weighted = _weighted(made.path)
        least, casts = TENSORRT_GOALS[name]
        goals = {
            f"{least} dB": not _reaches(got, least),
            "all in int8": products.get("Int8", 0) < weighted,
            "Casts": casts is not None and _casts(made.path) > casts,
        }
        kinds = ", ".join(f"{count} {kind}" for kind, count in products.most_common())
        floats = f"{_float32_nodes(made.path)}"
        yield name, f"{weighted}", layers, kinds, floats, f"{_casts(made.path)}", _db(got), _goals(goals)


def _engine(path: Path, feeds: Feeds, gpu: str) -> tuple[str, collections.Counter[str]]:
    """Build an engine; return the number of layers, or why there are none, and products by type of input.

    A product is a Conv, Gemm or MatMul of the file; one layer of the engine may compute several.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = checked_feeds(open_session(path), feeds)
        np.savez(inputs, **arrays)
        answer = run_in_process("build_engine", [path, inputs, Path(folder) / "outputs.npz", gpu], SECONDS)
    content = answer.content or {"built": False, "errors": [{"text": answer.failure}]}
    if not content["built"]:
        return f"not built: {content['errors'][0]['text'].splitlines()[0]}", collections.Counter()
    matrices = [layer for layer in content["layers"] if multiplies(layer)]
    kinds = {name: "+".join(layer["reads"]) for layer in matrices for name in layer["nodes"]}
    products = (node.name for node in load(path).graph if node.op_type in WEIGHTED)
    return str(len(content["layers"])), collections.Counter(kinds.get(name, "?") for name in products)


def _weighted(path: Path) -> int:
    return sum(node.op_type in WEIGHTED for node in load(path).graph)


def _casts(path: Path) -> int:
    return sum(is_op(node, "Cast") for node in all_nodes(load(path)))


def _float32_nodes(path: Path) -> int:
    """Count the nodes, Casts and Q/DQ aside, that compute in float32."""
    nodes = all_nodes(plain(load(path)))
    aside = ("Cast", "QuantizeLinear", "DequantizeLinear")
    return sum(
        not is_op(node, *aside) and any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
        for node in nodes
    )


# --- FP8 --------------------------------------------------------------------------------------------


def fp8(place: Place) -> Iterator[Row]:
    """Target tensorrt-fp8, beside NVIDIA's ModelOpt."""
    for name in NAMES:
        case = place.case(name)
        feeds = list(case.evaluation())
        given: dict[str, float | str] = {}
        for tool in ("onnxq", *FP8):
            made = _in_fp8(tool, case, place.work / f"{name}-{tool}.onnx", place.peers)
            given[tool] = accuracy(case, made, feeds)
            built = [_engine(made.path, feeds[0], gpu) if made.path else ("–", {}) for gpu in GPUS]
            cells = [f"{layers} ({_kinds(products)})" for layers, products in built]
            casts = str(_casts(made.path)) if made.path else "–"
            best = max((each for each in given.values() if isinstance(each, float)), default=0.0)
            yield name, tool, _db(given[tool]), *cells, casts, _seconds(made), ""
        ours = given["onnxq"]
        if ours != ABSENT and not _reaches(ours, best - REAL_MARGIN):
            yield name, "goal", "", "", "", "", "", "SQNR of the peer"


ABSENT = "skipped: there is no target tensorrt-fp8"


def _in_fp8(tool: str, case: Case, output: Path, peers: Peers) -> Made:
    if tool in FP8:
        return peers.convert(tool, case, output)
    try:
        get_target("tensorrt-fp8")
    except OnnxqError:
        return Made(word=ABSENT)
    return quantize(case, output, "--target", "tensorrt-fp8", *ENOUGH_TIME)


def _kinds(products: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(products.items()))


# --- conversions ------------------------------------------------------------------------------------


def hard(place: Place) -> Iterator[Row]:
    """`onnxq convert` to float16 on small networks that are hard for it."""
    for name, network in precision_models.HARD.items():
        random = np.random.default_rng(0)
        data = cases.batches(place.work / "data" / name, (network.feeds(random) for _ in range(8)))
        unseen = [network.feeds(random) for _ in range(16)]
        case = Case(network.save(place.work / f"{name}.onnx"), data, partial(list, unseen))
        made, peers = _converted(name, case, place)
        got = accuracy(case, made)
        cells = [_brief(case, each) for each in (made, *peers.values())]
        yield name, network.danger, *cells, _goals({f"{HARD_SQNR:.0f} dB": not _reaches(got, HARD_SQNR)})


def real(place: Place) -> Iterator[Row]:
    """`onnxq convert` to float16 on real networks."""
    for name in NAMES:
        case = place.case(name)
        made, peers = _converted(name, case, place)
        found = {tool: accuracy(case, each) for tool, each in {"onnxq": made, **peers}.items()}
        best = max((each for each in found.values() if isinstance(each, float)), default=0.0)
        size = made.path.stat().st_size / case.model.stat().st_size if made.path else 1.0
        goals = {
            "SQNR of the peers": not _reaches(found["onnxq"], best - REAL_MARGIN),
            "half the size": size > HALF_SIZE,
            "5 s": made.run is None or made.run.seconds > MOST_SECONDS,
        }
        for tool, each in {"onnxq": made, **peers}.items():
            casts = str(_casts(each.path)) if each.path else "–"
            share = _share(each.path, case.model)
            missed = _goals(goals) if tool == "onnxq" else ""
            yield name, tool, _db(found[tool]), share, casts, _seconds(each), missed


def _converted(name: str, case: Case, place: Place) -> tuple[Made, dict[str, Made]]:
    """Convert with onnxq and with each peer."""
    made = convert(case, place.work / f"{name}-ours.onnx")
    return made, {
        tool: place.peers.convert(tool, case, place.work / f"{name}-{tool}.onnx") for tool in CONVERTERS
    }


def _brief(case: Case, made: Made) -> str:
    found = accuracy(case, made)
    if made.path is None:
        return _db(found)
    return f"{_db(found)}, {_share(made.path, case.model)}, {_seconds(made)}"


# --- 16 bits ----------------------------------------------------------------------------------------


def sixteen(place: Place) -> Iterator[Row]:
    """Target qnn with a goal of 30 dB: 16-bit activations instead of float.

    The command fails if the goal does not hold on held-out samples; the printed SQNR is of other pictures.
    """
    case = place.case("lite0")
    options = ("--target", "qnn", "--goal", f"sqnr>={SIXTEEN_SQNR:.0f}")
    made = quantize(case, place.work / "lite0.onnx", *options)
    got = accuracy(case, made)
    if made.path is None:
        yield "lite0", *[made.word] * 4, "all"
        return
    wide, floats = _wide_nodes(made.path), _float_convolutions(made.path)
    goals = {"no Conv in float": floats > 0, "nodes in 16 bits": not wide}
    yield "lite0", str(wide), str(floats), f"{made.path.stat().st_size:,}", _db(got), _goals(goals)


def _wide_nodes(path: Path) -> int:
    """Count the nodes whose outputs are quantized to 16 bits, by standard operators or ONNX Runtime's own."""
    quantizers = (node for node in load(path).graph if node.op_type == "QuantizeLinear")
    wide = {producer_of(node.inputs[0]) for node in quantizers if _is_wide(input_at(node, 2))}
    return len(wide - {None})


def _is_wide(zero: ir.Value | None) -> bool:
    given = None if zero is None else zero.const_value
    return given is not None and given.dtype in (ir.DataType.UINT16, ir.DataType.INT16)


def _float_convolutions(path: Path) -> int:
    sources = (producer_of(node.inputs[0]) for node in load(path).graph if is_op(node, "Conv"))
    return sum(source is None or source.op_type != "DequantizeLinear" for source in sources)


# --- tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A table of the benchmark.

    Attributes:
        rows: yields the rows. The first line of its docstring is the title.
        headings: headings of the columns; one more, for missed goals, follows.
    """

    rows: Callable[[Place], Iterator[Row]]
    headings: tuple[str, ...]


TOOLS = ("onnxq", *CONVERTERS)

SECTIONS: Mapping[str, Section] = {
    "half-inputs": Section(
        half_inputs, ("network", "given in float16", "given in float32", "size", "size from float32")
    ),
    "tensorrt": Section(
        tensorrt,
        ("network", "weighted", "layers", "products by input", "float32 nodes", "Casts", "SQNR"),
    ),
    "fp8": Section(fp8, ("network", "tool", "SQNR", *(f"layers, {gpu}" for gpu in GPUS), "Casts", "s")),
    "hard": Section(hard, ("network", "danger", *TOOLS)),
    "real": Section(real, ("network", "tool", "SQNR", "size", "Casts", "s")),
    "sixteen": Section(sixteen, ("network", "nodes in 16 bits", "Conv in float", "bytes", "SQNR elsewhere")),
}

SKIPPED = "skipped"


def _db(found: float | str) -> str:
    return f"{found:.1f} dB" if isinstance(found, float) else found


def _reaches(found: float | str, least: float) -> bool:
    return isinstance(found, float) and found >= least


def _share(path: Path | None, model: Path) -> str:
    return f"{path.stat().st_size / model.stat().st_size:.2f}" if path else "–"


def _seconds(made: Made) -> str:
    """Seconds by the clock, and those of all processors together."""
    return f"{made.run.seconds:.1f} / {made.run.processor_seconds:.1f} s" if made.run else "–"


def _goals(missed: Mapping[str, bool]) -> str:
    return ", ".join(name for name, is_missed in missed.items() if is_missed)


def main() -> int:
    """Measure the sections of the command line; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path, help="the Python of an environment with the peers")
    given = bench.arguments(parser, SECTIONS)
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for name in given.sections or SECTIONS:
            section = SECTIONS[name]
            work = Path(given.keep or folder) / name
            work.mkdir(parents=True)
            title = (section.rows.__doc__ or "").splitlines()[0]
            table = Table(title=f"{name}: {title}", title_justify="left")
            for heading in (*section.headings, "missed"):
                table.add_column(heading)
            for cells in section.rows(Place(given.data, work, Peers(given.peer_python))):
                table.add_row(*cells)
                print(" | ".join(cells), file=sys.stderr, flush=True)
                met &= not cells[-1] or cells[-1].startswith(SKIPPED)
            Console(width=160).print(table)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
