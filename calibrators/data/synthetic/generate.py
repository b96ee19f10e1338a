"""Synthetic inputs, made from the types and shapes of a model alone.

They allow calibration when no data is available. Types and shapes are right, but ranges are a guess, so
results say nothing about accuracy. Images are smooth noise of mean 0 and variance 1. Token ids stay inside
the embedding table that they index (see `id_bounds`). Other integers are 1, like an attention mask that hides
nothing. Caches of decoders are plain noise, all of one length. Free dimensions get sizes with which the model
has been run; sums of others are respected (see `size_sums`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.data.caches import cache_lengths, find_caches
from calibrators.data.samples import Array, DataSource, InputSpec, Sample, batched, describe, fixed_batch
from calibrators.data.synthetic.size_sums import Sums, known_sums, possible_sums
from calibrators.errors import CalibrationError

log = logging.getLogger(__name__)


ATTEMPTS: Sequence[Mapping[str, int]] = (
    {"picture": 224, "sequence": 16},
    {"picture": 256, "sequence": 128},
    {"picture": 32, "sequence": 32},
    {"picture": 640, "sequence": 1},
    {"picture": 64, "sequence": 512},
)
"""Sizes to try for free dimensions: height and width of an image (input with four axes), and all others."""


FIRST_ATTEMPTS = 3
"""How many of them are made before one name is tried as the sum of two others. Later ones have axes of
size 1, which a model may broadcast where two sizes do not fit."""


MOST_NAMES = 5
"""The most names of free sizes of which every possible sum is tried: 50 runs for five."""


MOST_ELEMENTS = 2**28
"""Most elements in a synthetic sample: 2 GiB while they are made, in float64."""


COARSE = 16
"""Distance of the knots of the smooth part of an image, in pixels."""


TEXTURE = 0.5
"""Standard deviation of the white noise in an image; that of the smooth part is 1."""


Generator = np.random.Generator


def synthetic_samples(model: ir.Model, inputs: Sequence[InputSpec], count: int, seed: int) -> DataSource:
    """Make random samples with the right types and shapes.

    If sizes must be guessed, the model is run once with each guess until one works.

    Args:
        model: the model; it is not changed.
        inputs: its inputs.
        count: number of samples.
        seed: the same seed gives the same samples.

    Raises:
        CalibrationError: an input's rank is unknown, its type is not numeric or its size too large, or the
            model runs with none of the guessed sizes.
    """
    inputs = with_caches(model, inputs)
    for spec in inputs:
        if spec.shape is None or spec.dtype.kind not in "biuf":
            raise CalibrationError(f"no synthetic data for input {spec}: give calibration data (--data)")
    bounds = id_bounds(model)
    shapes = _working_shapes(model, inputs, bounds, seed)
    log.debug("synthetic inputs: %s", ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()))
    runs = -(-count // (fixed_batch(inputs) or 1))
    return DataSource(lambda: (_sample(inputs, shapes, bounds, seed, i) for i in range(runs)), count)


def token_sample(
    model: ir.Model, inputs: Sequence[InputSpec], length: int, seed: Sequence[int]
) -> Sample | None:
    """Make one sample of random token ids, with empty caches, without running the model.

    Args:
        model: the model; it is not changed.
        inputs: its inputs.
        length: the number of ids, where it is free.
        seed: the same numbers give the same sample.

    Returns:
        None if no input is an index into a table, or if an input's rank is unknown or its type not numeric.
    """
    inputs, bounds = with_caches(model, inputs), id_bounds(model)
    if not bounds or any(spec.shape is None or spec.dtype.kind not in "biuf" for spec in inputs):
        return None
    integers = [dim for spec in inputs if spec.dtype.kind != "f" for dim in spec.shape or ()]
    empty = {name: 0 for name in _free_names(inputs) if name not in integers}
    sizes = {"picture": length, "sequence": length}
    shapes = _shapes(inputs, sizes, known_sums(model, _free_names(inputs)), empty)
    if elements(shapes) > MOST_ELEMENTS:
        return None
    return _sample(inputs, shapes, bounds, *seed)


def with_caches(model: ir.Model, inputs: Sequence[InputSpec]) -> list[InputSpec]:
    """Mark the inputs that are caches, and give their lengths one name."""
    caches = find_caches(model.graph)
    names, lengths = {cache.past.name for cache in caches}, cache_lengths(caches)
    return [
        replace(spec, is_cache=True, shape=tuple(lengths.get(str(dim), dim) for dim in spec.shape or ()))
        if spec.name in names
        else spec
        for spec in inputs
    ]


def _working_shapes(
    model: ir.Model, inputs: Sequence[InputSpec], bounds: Mapping[str, int], seed: int
) -> dict[str, tuple[int, ...]]:
    names = _free_names(inputs)
    sums = known_sums(model, names)
    guesses = [_shapes(inputs, sizes, sums) for sizes in ATTEMPTS]
    check_sizes(inputs, min(guesses, key=elements))
    guesses = [guess for guess in guesses if elements(guess) <= MOST_ELEMENTS]
    if all(guess == guesses[0] for guess in guesses):
        return guesses[0]
    if len(names) <= MOST_NAMES:
        more = [_shapes(inputs, ATTEMPTS[0], sums) for sums in possible_sums(names)]
        more = [guess for guess in more if elements(guess) <= MOST_ELEMENTS]
        guesses[FIRST_ATTEMPTS:FIRST_ATTEMPTS] = more
    # Imported here: ONNX Runtime is heavy, and most calls have data or fixed shapes.
    from calibrators.session import RUNTIME_ERRORS, brief, open_session

    session = open_session(model)
    reason = ""
    for shapes in guesses:
        feeds = _sample(inputs, shapes, bounds, seed, 0).feeds
        try:
            session.run(None, dict(feeds))
        except RUNTIME_ERRORS as e:
            reason = brief(e)
        else:
            return shapes
    raise CalibrationError(
        f"the model takes {describe(inputs)}, and runs with none of the sizes tried for its free dimensions: "
        f"give calibration data (--data). The last failure: {reason}"
    )


def _free_names(inputs: Sequence[InputSpec]) -> list[str]:
    """The names of sizes, without those of batches and without expressions."""
    dims = dict.fromkeys(
        dim
        for spec in inputs
        for axis, dim in enumerate(spec.shape or ())
        if isinstance(dim, str) and not _counts_samples(spec, axis, inputs)
    )
    return [dim for dim in dims if dim.isidentifier()]


def elements(shapes: Mapping[str, Sequence[int]]) -> int:
    """Count the elements of all inputs."""
    return sum(math.prod(shape) for shape in shapes.values())


def check_sizes(inputs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that inputs of these shapes can be made.

    Raises:
        CalibrationError: they have more than `MOST_ELEMENTS` elements.
    """
    if elements(shapes) > MOST_ELEMENTS:
        largest = max(inputs, key=lambda spec: math.prod(shapes[spec.name]))
        raise CalibrationError(
            f"input {largest} is declared too large to make a sample of it: give calibration data (--data), "
            "or declare the sizes that the model is used with"
        )


def _shapes(
    inputs: Sequence[InputSpec], sizes: Mapping[str, int], sums: Sums, given: Mapping[str, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of each input; a symbol has the same size everywhere, also within ``past + 1``."""
    known = {part: sizes["sequence"] for parts in sums.values() for part in parts if isinstance(part, str)}
    known |= given or {}
    for total, parts in sums.items():
        known[total] = sum(part if isinstance(part, int) else known[part] for part in parts)
    for spec in inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str):
                known.setdefault(dim, _size(spec, axis, inputs, sizes))
    return {
        spec.name: tuple(
            _resolved(dim, known) if dim is not None else _size(spec, axis, inputs, sizes)
            for axis, dim in enumerate(spec.shape or ())
        )
        for spec in inputs
    }


def _resolved(dim: int | str, known: Mapping[str, int]) -> int:
    """The size of a dimension; an expression is evaluated if all its symbols are known."""
    if isinstance(dim, int):
        return dim
    symbolic = ir.SymbolicDim(dim)
    try:
        parts = symbolic.free_symbols()
        if dim not in parts and parts <= known.keys():
            size = symbolic.evaluate({part: known[part] for part in parts})
            return max(1, size) if isinstance(size, int) else known[dim]
    except ValueError:
        log.debug("dimension '%s' is no expression", dim)
    return known[dim]


def _size(spec: InputSpec, axis: int, inputs: Sequence[InputSpec], sizes: Mapping[str, int]) -> int:
    """Guess the size of a free axis by its position."""
    if _counts_samples(spec, axis, inputs):
        return 1
    if len(spec.shape or ()) != 4 or spec.is_cache:
        return sizes["sequence"]
    return sizes["picture"] if axis in _picture_axes(spec) else 3


def _counts_samples(spec: InputSpec, axis: int, inputs: Sequence[InputSpec]) -> bool:
    """Whether a free axis is that of the batch."""
    dim = spec.shape[axis] if spec.shape else None
    if axis == 0 and spec.name in batched(inputs) and len(spec.shape or ()) > 1:
        return True
    return isinstance(dim, str) and "batch" in dim.lower()


def _picture_axes(spec: InputSpec) -> tuple[int, int]:
    """Height and width of an input with four axes."""
    shape = spec.shape or ()
    return (1, 2) if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else (2, 3)


def _sample(
    inputs: Sequence[InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    bounds: Mapping[str, int],
    seed: int,
    index: int,
) -> Sample:
    rng = np.random.default_rng([seed, index])
    feeds = {spec.name: _values(spec, shapes[spec.name], bounds.get(spec.name), rng) for spec in inputs}
    size = fixed_batch(inputs) or 1
    joinable = {shapes[name][0] for name in batched(inputs)} == {size}
    return Sample(f"synthetic sample {index}", feeds, size if joinable else 1, joinable)


def _values(spec: InputSpec, shape: tuple[int, ...], bound: int | None, rng: Generator) -> Array:
    if spec.dtype.kind == "b" or 0 in shape:
        return np.ones(shape, spec.dtype)
    if spec.dtype.kind in "iu":
        if bound is not None:
            return rng.integers(0, bound, shape).astype(spec.dtype)
        if spec.dtype != np.uint8 or len(shape) != 4:
            return np.ones(shape, spec.dtype)
        return np.clip(128 + 64 * _picture(spec, shape, rng), 0, 255).astype(np.uint8)
    is_picture = len(shape) == 4 and not spec.is_cache
    values = _picture(spec, shape, rng) if is_picture else rng.standard_normal(shape)
    return np.asarray(values, spec.dtype)


def _picture(spec: InputSpec, shape: tuple[int, ...], rng: Generator) -> NDArray[np.float64]:
    """Make smooth noise with some texture, like a photograph, of mean 0 and variance 1 over all pixels."""
    axes = _picture_axes(spec)
    knots = [max(2, -(-size // COARSE)) if axis in axes else size for axis, size in enumerate(shape)]
    smooth = rng.standard_normal(knots)
    for axis in axes:
        smooth = _interpolated(smooth, axis, shape[axis])
    values = smooth / max(float(smooth.std()), 1e-6) + TEXTURE * rng.standard_normal(shape)
    result: NDArray[np.float64] = (values - values.mean()) / max(float(values.std()), 1e-6)
    return result


def _interpolated(knots: NDArray[np.float64], axis: int, size: int) -> NDArray[np.float64]:
    """Interpolate linearly along one axis, from first to last knot, to ``size`` values."""
    position = np.linspace(0, knots.shape[axis] - 1, size)
    before = np.minimum(position.astype(np.int64), knots.shape[axis] - 2)
    share = (position - before).reshape([-1 if each == axis else 1 for each in range(knots.ndim)])
    low, high = knots.take(before, axis), knots.take(before + 1, axis)
    result: NDArray[np.float64] = low * (1 - share) + high * share
    return result


CARRIERS = frozenset(
    {
        "Cast",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that pass on the integers of their first input unchanged."""


def id_bounds(model: ir.Model) -> dict[str, int]:
    """Find the inputs that are indices into a table: input name -> number of entries of the smallest table.

    A table is the data of a Gather. Only tables of known size count, and only values that reach the Gather
    unchanged.
    """
    bounds = {value.name or "": list(_tables(value)) for value in model.graph.inputs}
    return {name: min(sizes) for name, sizes in bounds.items() if sizes}


def _tables(start: ir.Value) -> Iterator[int]:
    waiting, seen = [start], {id(start)}
    while waiting:
        value = waiting.pop()
        for node, index in value.uses():
            if (size := _table_size(node, index)) is not None:
                yield size
            if node.op_type in CARRIERS and index == 0:
                waiting += [out for out in node.outputs if id(out) not in seen]
                seen |= {id(out) for out in node.outputs}


def _table_size(node: ir.Node, index: int) -> int | None:
    """The length of the axis that ``node`` indexes with its input ``index``, if it is fixed."""
    if node.op_type != "Gather" or index != 1 or node.inputs[0] is None:
        return None
    table, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    shape = table.const_value.shape if table.const_value is not None else table.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) and size > 0 else None
