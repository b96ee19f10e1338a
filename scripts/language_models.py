"""Language models for the benchmark: token ids, what a model makes of them, and a made-up large model."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

Ids = NDArray[np.int64]
Feeds = dict[str, NDArray[Any]]

PIECES, LENGTH = 24, 256
"""Pieces of text, and tokens of each."""

KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def pieces(shared: Path, tokenizer: Path, split: str) -> list[Ids]:
    """Read token ids ``[1, LENGTH]`` of sentences of STS-B, joined by line ends.

    Args:
        shared: the evaluation data.
        tokenizer: the file tokenizer.json.
        split: ``train`` to calibrate, ``test`` to evaluate.
    """
    from tokenizers import Tokenizer

    with (shared / "stsb" / f"{split}.csv").open(encoding="utf8") as file:
        cells = [cell for row in csv.reader(file) for cell in row if len(cell) > 25 and " " in cell]
    ids = Tokenizer.from_file(str(tokenizer)).encode("\n".join(dict.fromkeys(cells))).ids
    return [np.array([ids[i * LENGTH : (i + 1) * LENGTH]], np.int64) for i in range(PIECES)]


def session_of(path: Path, threads: int = 2) -> ort.InferenceSession:
    """Open a model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(session: ort.InferenceSession, ids: Ids, past: int = 0) -> Feeds:
    """Make all inputs of a decoder: ids, a mask of ones, and a cache of zeros of ``past`` positions."""
    length = past + ids.shape[1]
    given = {
        "input_ids": ids,
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(past, length)[None],
    }
    return {
        each.name: given[each.name]
        if each.name in given
        else np.zeros((1, each.shape[1], past, each.shape[3]), KINDS[each.type])
        for each in session.get_inputs()
    }


@dataclass(frozen=True)
class Quality:
    """How much of a model is left.

    Attributes:
        perplexity: of the text.
        divergence: mean KL divergence of the next token from that of the reference, in nats.
        equal: share of positions with the same most likely token.
    """

    perplexity: float
    divergence: float
    equal: float


def quality(path: Path, data: Sequence[Ids], reference: list[NDArray[np.float32]]) -> Quality:
    """Compare a model with the reference.

    Args:
        path: the model.
        data: token ids.
        reference: log probabilities of the reference for each piece; filled in by the first call.
    """
    session, lost, divergence, equal, count = session_of(path), 0.0, 0.0, 0, 0
    for index, ids in enumerate(data):
        ours = _log_probabilities(session, ids)
        if len(reference) <= index:
            reference.append(ours.astype(np.float32))
        theirs = reference[index].astype(np.float64)
        lost -= float(ours[np.arange(LENGTH - 1), ids[0, 1:]].sum())
        divergence += float((np.exp(theirs) * (theirs - ours)).sum())
        equal += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        count += LENGTH
    return Quality(float(np.exp(lost / (count - len(data)))), divergence / count, equal / count)


def _log_probabilities(session: ort.InferenceSession, ids: Ids) -> NDArray[np.float64]:
    found = session.run([session.get_outputs()[0].name], feeds_of(session, ids))[0][0]
    logits: NDArray[np.float64] = np.asarray(found, np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits


def cache_error(path: Path, ids: Ids, split: int = 200) -> float:
    """Return the largest difference of logits between one pass and many, as a share of the largest logit.

    Args:
        path: a decoder with a cache.
        ids: token ids.
        split: the number of them in the first pass (prefill); the others follow one by one (decode).
    """
    session = session_of(path)
    names = [each.name for each in session.get_outputs()]
    caches = [each.name for each in session.get_inputs() if "past" in each.name]
    once = session.run(None, feeds_of(session, ids))[0]
    parts, kept = [], dict[str, Any]()
    for start, stop in [(0, split), *((i, i + 1) for i in range(split, ids.shape[1]))]:
        feeds = feeds_of(session, ids[:, start:stop], start) | kept
        found = dict(zip(names, session.run(None, feeds), strict=True))
        parts.append(found[names[0]])
        kept = {name: found[_present(name)] for name in caches}
    return float(np.abs(np.concatenate(parts, axis=1) - once).max() / np.abs(once).max())


def with_float_kernels(path: Path, copy: Path) -> Path:
    """Write ``copy``, in the same folder, whose MatMulNBits compute with activations in float; return it."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, copy)
    return copy


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def speeds(paths: Sequence[Path], threads: int, past: int, length: int, runs: int = 15) -> list[float]:
    """Time models in turns; return the least milliseconds of a run of each."""
    sessions = [session_of(path, threads) for path in paths]
    ids = np.random.default_rng(0).integers(0, 200, (1, length))
    inputs = [feeds_of(session, ids, past if _has_cache(session) else 0) for session in sessions]
    found = [float("inf")] * len(paths)
    for _ in range(runs):
        for place, (session, feeds) in enumerate(zip(sessions, inputs, strict=True)):
            start = time.perf_counter()
            session.run(None, feeds)
            found[place] = min(found[place], 1000 * (time.perf_counter() - start))
    return found


def _has_cache(session: ort.InferenceSession) -> bool:
    return any("past" in each.name for each in session.get_inputs())


def size_of(path: Path) -> float:
    """Return the size of a model with its data files, in MB."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*")) / 1e6


def make_large(path: Path, gigabytes: float, width: int = 4096) -> None:
    """Write a made-up LLaMA-shaped model with random float32 weights, one tensor in memory at a time.

    Args:
        path: its file; the weights go beside it.
        gigabytes: about its size.
        width: its channels; a layer has 12.25 times the square of weights; there are 32,000 words.
    """
    inner, words = 11 * width // 4, 32000
    shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    shapes |= {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    each = 4 * sum(rows * columns for rows, columns in shapes.values())
    layers = max(1, round((gigabytes * 1e9 - 4 * words * width) / each))
    nodes, tensors = (
        [helper.make_node("Gather", ["table", "input_ids"], ["x0"], "embed")],
        list[TensorProto](),
    )
    with path.with_name(f"{path.name}.data").open("wb") as file:
        tensors.append(_stored("table", (words, width), file, path))
        for layer in range(layers):
            names = {name: f"{name}{layer}" for name in shapes}
            tensors += [_stored(names[name], shape, file, path) for name, shape in shapes.items()]
            nodes += list(_layer(layer, names))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "S"])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, ["N", "S", width])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _layer(layer: int, names: dict[str, str]) -> Iterator[onnx.NodeProto]:
    """Yield a layer without attention, whose nodes cost nothing to quantize."""
    x = f"x{layer}"
    for name in ("q", "k", "v"):
        yield helper.make_node("MatMul", [x, names[name]], [f"{name}{layer}y"], f"{name}_{layer}")
    yield helper.make_node("Sum", [f"{name}{layer}y" for name in "qkv"], [f"s{layer}"], f"sum_{layer}")
    yield helper.make_node("MatMul", [f"s{layer}", names["o"]], [f"o{layer}y"], f"o_{layer}")
    yield helper.make_node("MatMul", [f"o{layer}y", names["gate"]], [f"g{layer}y"], f"gate_{layer}")
    yield helper.make_node("MatMul", [f"o{layer}y", names["up"]], [f"u{layer}y"], f"up_{layer}")
    yield helper.make_node("Mul", [f"g{layer}y", f"u{layer}y"], [f"m{layer}"], f"mul_{layer}")
    yield helper.make_node("MatMul", [f"m{layer}", names["down"]], [f"x{layer + 1}"], f"down_{layer}")


def _stored(name: str, shape: tuple[int, int], file: Any, path: Path) -> TensorProto:
    start = file.tell()
    numbers = np.random.default_rng(len(name)).standard_normal(shape, np.float32)
    numbers *= np.float32(shape[0] ** -0.5)
    file.write(numbers.data)
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": f"{path.name}.data", "offset": start, "length": numbers.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
