"""Every operator that ONNX has a test for, alone in a model: cleaning changes no output."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx.backend.test.case.node
import onnx.numpy_helper
import onnx_ir as ir
import pytest
from graphs import run

from onnxq.core.errors import ModelError
from onnxq.graph.passes import simplify

KNOWN = (
    "dft",
    "stft",
    "affine_grid_2d_",
    "scan_sum",
    "batchnorm_epsilon_training",
    "batchnorm_example_training",
)
"""ONNX Runtime computes Fourier transforms with large errors, and folded they are exact. The grids feed a
vector to Range, which it overlooks only while an If hides it. Scan of opset 8 is refused.
BatchNormalization in training mode is put into inference mode.
"""


@pytest.fixture(scope="module")
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = onnx.backend.test.case.node.collect_testcases(None)
    usable = [c for c in found if c.data_sets and all(isinstance(x, np.ndarray) for x in c.data_sets[0][0])]
    complete = [c for c in usable if len(c.model.graph.input) == len(c.data_sets[0][0])]
    return list({likeness(case): case for case in reversed(complete)}.values())


def likeness(case) -> tuple:
    """Equal for the bodies of one function (there are 90 of Attention) that have the same operators for the
    same types of data, and take half of the time; every operator's own cases are all tried.
    """
    if "_expanded" not in case.name:
        return (case.name,)
    operators = tuple((node.op_type, len(node.input)) for node in case.model.graph.node)
    return (*operators, *(array.dtype for array in case.data_sets[0][0]))


def constant_inputs(model: onnx.ModelProto, feeds: dict, kept: int) -> onnx.ModelProto:
    """The same model with the inputs after the first ``kept`` as initializers; they leave ``feeds``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [v.name for v in copy.graph.input[kept:]]
    copy.graph.initializer.extend(onnx.numpy_helper.from_array(feeds.pop(name), name) for name in names)
    del copy.graph.input[kept:]
    return copy


def same(expected, actual) -> bool:
    if isinstance(expected, list):
        return isinstance(actual, list) and len(expected) == len(actual) and all(map(same, expected, actual))
    if expected is None or expected.dtype.kind not in "fc":
        return np.array_equal(expected, actual)
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return False
    rtol = 2e-3 if expected.dtype == np.float16 else 1e-5
    return np.allclose(expected, actual, rtol=rtol, atol=1e-6, equal_nan=True)


def outputs(model: ir.Model, feeds: dict) -> list | None:
    """What ONNX Runtime computes, None when it does not take the model."""
    try:
        return run(model, feeds)
    except Exception:  # noqa: BLE001  (its exceptions have no base of their own)
        return None


def cleaned(model: ir.Model) -> ir.Model | None:
    try:
        return simplify(model)
    except ModelError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("kept", [99, 1, 0], ids=["as it is", "constants after the first", "all constant"])
def test_every_operator(cases, kept):
    compared, wrong = 0, []
    for case in cases:
        feeds = dict(zip((v.name for v in case.model.graph.input), case.data_sets[0][0], strict=True))
        before = ir.from_proto(constant_inputs(case.model, feeds, kept))
        expected = outputs(before, feeds)
        if expected is not None:
            compared += 1
            after = cleaned(before)
            if after is None or not same(expected, outputs(after, feeds)):
                wrong.append(case.name.removeprefix("test_"))
    assert compared > 800
    assert [name for name in wrong if not name.startswith(KNOWN)] == []
