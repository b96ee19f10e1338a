"""Inputs of a model, and which of their axes count samples."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibrators.data.samples import InputSpec, batched, describe, fixed_batch, input_specs
from calibrators.errors import CalibrationError


def spec(name, *shape, dtype="float32"):
    return InputSpec(name, np.dtype(dtype), shape)


def model(text):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}'))


def test_specs_of_a_model_leave_out_initializers():
    found = input_specs(
        model("""g (float[N, 3, ?, 8] x, int64 s, float16[] u, string[2] t, float[2] w) => (float[N] z)
                 <float[2] w = {1, 2}> { z = Identity(x) }""")
    )
    assert found == (
        InputSpec("x", np.dtype("float32"), ("N", 3, None, 8)),
        InputSpec("s", np.dtype("int64"), ()),
        InputSpec("u", np.dtype("float16"), None),
        InputSpec("t", np.dtype("O"), (2,)),
    )
    assert (
        describe(found)
        == "'x' (float32 [N, 3, ?, 8]), 's' (int64 []), 'u' (float16 of unknown shape), 't' (string [2])"
    )


def test_an_input_that_is_no_tensor_is_named():
    with pytest.raises(CalibrationError, match=r"'q'.*only tensors"):
        input_specs(model("g (seq(float[2]) q) => (seq(float[2]) z) { z = Identity(q) }"))


@pytest.mark.parametrize(
    ("inputs", "names", "size"),
    [
        ([spec("x", "N", 3)], "x", None),
        ([spec("x", None, 3), spec("m", None)], "xm", None),
        ([spec("x", 8, 3), spec("y", 8, 5)], "xy", 8),
        ([spec("x", 1, 3), spec("y", "N", 5)], "xy", 1),
        ([spec("x", "N", 3), spec("s")], "x", None),
        ([spec("x", "N", 3), spec("table", 7, 3)], "x", None),
        ([spec("x", 1, 3), spec("k", 4)], "x", 1),
        ([spec("x", "time", "batch", 3)], "", None),
        ([spec("x", "batch", 3), spec("h", 2, "batch", 5)], "x", None),
        ([spec("x", 0, 3)], "", None),
        ([InputSpec("x", np.dtype("float32"), None)], "x", None),
        ([], "", None),
    ],
)
def test_which_axes_count_samples(inputs, names, size):
    assert batched(inputs) == set(names)
    assert fixed_batch(inputs) == size
