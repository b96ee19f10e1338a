"""Small models as text, and a float comparison of two models: tools that the tests share.

A tensor that the text declares and nothing gives a value is a weight: it gets random values here.
"""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

SIZES = {"N": 2, "M": 3}
"""Named dimensions of the text models, as they are fed; any other is 5."""


def parse(
    text: str, opset: int = 13, ir_version: int = 8, functions: str = "", check: bool = True, **given
) -> ir.Model:
    """A model from the text of its graph, `onnx.parser` syntax, checked.

    Args:
        text: ``g (inputs) => (outputs) <tensors> { nodes }``.
        opset: of the standard domain.
        ir_version: of the file.
        functions: text of model-local functions, in the domain "local".
        check: let `onnx.checker` look at it, which knows no operators but the standard ones.
        given: values of tensors by name; those not given are random, and positive when the name
            starts with "var".
    """
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    proto = onnx.parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{imports}]>\n{text}\n{functions}"
    )
    fill_weights(proto.graph, given)
    if check:
        onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def fill_weights(graph, given):
    """Turn the declared tensors that nothing computes into initializers."""
    known = {v.name for v in graph.input} | {o for n in graph.node for o in n.output}
    known |= {t.name for t in graph.initializer}
    declared = [v for v in graph.value_info if v.name not in known]
    for info in declared:
        graph.initializer.append(onnx.numpy_helper.from_array(_weight(info, given), info.name))
        graph.value_info.remove(info)
    unused = set(given) - {info.name for info in declared}
    assert not unused, f"not in the text: {unused}"


def _weight(info, given):
    shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if info.name in given:
        return np.broadcast_to(np.asarray(given[info.name], dtype), shape).copy()
    rng = np.random.default_rng(zlib.crc32(info.name.encode()))
    values = rng.uniform(0.5, 2, shape) if info.name.startswith("var") else rng.standard_normal(shape)
    return values.astype(dtype)


def feeds_for(model: ir.Model, seed: int = 0, **given) -> dict:
    """Random inputs: normal floats, small integers, True."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else SIZES.get(str(d.value), 5) for d in value.shape]
        dtype = value.dtype.numpy()
        normal = rng.standard_normal(shape)
        feeds[value.name] = (normal if dtype.kind == "f" else np.ones(shape)).astype(dtype)
    return feeds | given


def run(model: ir.Model, feeds: dict | None = None) -> list[np.ndarray]:
    """All outputs, computed by ONNX Runtime exactly as the graph stands (no optimization)."""
    copy = model.clone()
    ir.external_data.load_to_model(copy)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(copy).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds_for(model) if feeds is None else feeds)


def assert_same_outputs(
    before: ir.Model, after: ir.Model, feeds: dict | None = None, tolerance: float = 1e-5
) -> None:
    """Same interface, same numbers: the largest difference, over the largest value, is within tolerance."""
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
    weights = set(before.graph.initializers)
    assert [v.name for v in after.graph.inputs] == [
        v.name for v in before.graph.inputs if v.name not in weights
    ]
    feeds = feeds_for(after) if feeds is None else feeds
    for value, expected, actual in zip(
        before.graph.outputs, run(before, feeds), run(after, feeds), strict=True
    ):
        assert actual.dtype == expected.dtype, value.name
        assert actual.shape == expected.shape, value.name
        assert np.isfinite(expected.astype(np.float64)).all(), f"{value.name}: nothing to compare"
        error, scale = np.abs(actual - expected.astype(np.float64)), np.abs(expected.astype(np.float64))
        assert error.max(initial=0) <= tolerance * scale.max(initial=1e-12), value.name


def op_counts(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator, bodies included."""
    return dict(Counter(n.op_type for n in ir.traversal.RecursiveGraphIterator(model.graph)))
