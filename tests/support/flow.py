"""The whole flow on a model in memory, and everything that must hold of what comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
from graphs import feeds_for

from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.methods import CALIBRATORS
from calibrators.session import open_session
from onnxq.calibration.qparams import compute_qparams, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.core.plan import QuantPlan
from onnxq.graph.nodes import all_nodes
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.passes import simplify
from onnxq.graph.qdq.insert_qdq import as_written
from onnxq.planner import make_plan
from onnxq.planner.number_formats import find_formats
from onnxq.targets.lookup import get_target
from onnxq.verify import legality
from onnxq.verify.subject import Subject

INTEGER_KERNELS = {
    "Conv": {"QLinearConv"},
    "Gemm": {"QGemm", "MatMulNBits"},
    "MatMul": {"QLinearMatMul", "MatMulIntegerToFloat", "QGemm", "MatMulNBits"},
    "Add": {"QLinearAdd"},
    "Mul": {"QLinearMul"},
    "Concat": {"QLinearConcat"},
    "AveragePool": {"QLinearAveragePool"},
    "GlobalAveragePool": {"QLinearGlobalAveragePool"},
    "LeakyRelu": {"QLinearLeakyRelu"},
    "Sigmoid": {"QLinearSigmoid"},
    "Softmax": {"QLinearSoftmax"},
}
"""What ONNX Runtime makes of a quantized operator. All others keep their name and read integers."""

EXACT = 30.0
"""dB: integer and dequantized arithmetic differ by single steps of the grid, where they round a tie."""

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Flow:
    """A model before and after."""

    model: ir.Model
    simple: ir.Model
    plan: QuantPlan
    int8: ir.Model
    feeds: Feeds

    def planned(self, op_type: str) -> int:
        return list(self.plan.integer_nodes.values()).count(op_type)

    @property
    def floats(self) -> set[str]:
        """Operators that stay float."""
        return {node.op_type for node in self.plan.float_nodes.values()}


def quantize(model: ir.Model, target: str = "onnxruntime", feeds: Feeds | None = None, **options) -> Flow:
    """Quantize ``model`` for one target with ranges from ``feeds``."""
    return quantize_for([target], model, feeds, **options)[0]


def quantize_for(
    targets: Iterable[str], model: ir.Model, feeds: Feeds | None = None, **options
) -> list[Flow]:
    """Quantize ``model`` for several targets; it is cleaned and observed once."""
    configs = [QuantConfig(target=target, **{"method": "minmax", **options}) for target in targets]
    simple = simplify(model, max(find_formats(get_target(c.target), c).opset for c in configs))
    feeds = feeds_for(simple) if feeds is None else feeds
    plans = [make_plan(simple, get_target(config.target), config) for config in configs]
    observed = [name for plan in plans for name in plan.observed]
    statistics = collect(simple, observed, [Sample("sample", feeds)], threads=1)
    flows = []
    for plan, config in zip(plans, configs, strict=True):
        plan = compute_qparams(simple, plan, from_statistics(statistics, CALIBRATORS[config.method]))
        flows.append(Flow(model, simple, plan, as_written(simple, plan), feeds))
    return flows


def check(flow: Flow, at_least: float = 20.0, exact: float = EXACT) -> None:
    """All that holds of every quantized model.

    Args:
        flow: what to check.
        at_least: SQNR in dB against the float model, without the runtime's own optimizations. One
            layer with random operands gives about 35 dB, and every layer adds noise of its own.
        exact: SQNR in dB of the model as the runtime fuses it, against the same model as it stands.
    """
    assert flow.plan.points, "nothing was quantized"
    onnx.checker.check_model(ir.to_proto(flow.int8), full_check=True)
    check_reasons(flow)
    check_interface(flow)
    check_legal(flow)
    expected = run(flow.model, flow.feeds, optimize=False)
    plain = run(flow.int8, flow.feeds, optimize=False)
    assert_close(flow, expected, plain, at_least)
    if "onnxruntime" in get_target(flow.plan.target).runtimes:
        assert_close(flow, plain, run(flow.int8, flow.feeds), exact)
        check_integer_kernels(flow)
    elif flow.plan.target == "tensorrt":
        check_tensorrt(flow)


def quantize_and_check(model: ir.Model, target: str, at_least: float = 20.0, feeds=None, **options) -> Flow:
    flow = quantize(model, target, feeds, **options)
    check(flow, at_least)
    return flow


def run(model: ir.Model, feeds: Feeds, optimize: bool = True) -> list:
    return open_session(model, threads=1, optimize=optimize).run(None, dict(feeds))


def assert_close(flow: Flow, expected: list, actual: list, at_least: float) -> None:
    for output, one, other in zip(flow.model.graph.outputs, expected, actual, strict=True):
        if not isinstance(one, np.ndarray):
            one, other = (
                np.concatenate([np.ravel(v) for v in one]),
                np.concatenate([np.ravel(v) for v in other]),
            )
        assert one.dtype == other.dtype, output.name
        assert one.shape == other.shape, output.name
        if one.dtype.kind == "f":
            quality = sqnr(one, other)
            assert quality >= at_least, f"{output.name}: {quality:.1f} dB"
        else:
            assert np.mean(one == other) > 0.8, output.name


def check_interface(flow: Flow) -> None:
    weights = set(flow.model.graph.initializers)
    assert [v.name for v in flow.int8.graph.inputs] == [
        v.name for v in flow.model.graph.inputs if v.name not in weights
    ]
    for before, after in zip(flow.model.graph.outputs, flow.int8.graph.outputs, strict=True):
        assert before.name == after.name
        assert before.dtype == after.dtype


def check_reasons(flow: Flow) -> None:
    """Every node that computes reals is in the plan, or fuses with one that is, or has a reason."""
    fused = {"Relu", "Clip"}
    told = flow.plan.integer_nodes.keys() | flow.plan.float_nodes.keys() | flow.plan.passthrough_nodes.keys()
    told |= {bias.consumer for bias in flow.plan.biases}
    for node in flow.simple.graph:
        reals = any(v.dtype is not None and v.dtype.is_floating_point() for v in node.outputs)
        if reals and node.op_type not in fused:
            assert node.name in told, node.name
    assert all(node.reason for node in flow.plan.float_nodes.values())


def check_legal(flow: Flow) -> None:
    """The rules of its target, as `onnxq verify` checks them in models of any origin."""
    verdict = legality.check(Subject("int8.onnx", flow.int8, get_target(flow.plan.target)))
    errors = [finding for finding in verdict.findings if finding.severity == "error"]
    assert not errors, errors


# --- ONNX Runtime ---------------------------------------------------------------------------------


def optimized(model: ir.Model) -> onnx.ModelProto:
    """What ONNX Runtime makes of a model, hardware layouts aside."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fused.onnx"
        open_session(model, threads=1, save_fused=path)
        return onnx.load(path, load_external_data=False)


def float_kernels(flow: Flow) -> Iterator[str]:
    """The planned nodes that ONNX Runtime nevertheless runs in float."""
    graph = optimized(flow.int8).graph
    nodes = {node.name: node for node in graph.node}
    floats = {o for node in graph.node if node.op_type == "DequantizeLinear" for o in node.output}
    for name, op_type in flow.plan.integer_nodes.items():
        node = nodes.get(name) or nodes.get(f"{name}/MatMulAddFusion")
        if op_type in INTEGER_KERNELS:
            if node is None or node.op_type not in INTEGER_KERNELS[op_type]:
                yield f"{op_type} {name} is {node.op_type if node else 'gone'}"
        elif node is not None and node.input[0] in floats:
            yield f"{op_type} {name} reads float"


def check_integer_kernels(flow: Flow) -> None:
    floats = list(float_kernels(flow))
    assert not floats, floats


# --- TensorRT -------------------------------------------------------------------------------------


def check_tensorrt(flow: Flow) -> None:
    """The rules of explicit quantization: symmetric int8, both operands, plain biases, the right axis."""
    graph = flow.int8.graph
    for node in all_nodes(flow.int8):
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            _check_symmetric(node)
        elif node.op_type in WEIGHTED and node.graph is graph:
            _check_operands(node)
        elif node.op_type == "Add" and any(map(_dequantized, node.inputs)):
            assert sum(map(_dequantized, node.inputs)) == 1, (
                f"{node.name}: the convolution's branch stays bare"
            )


def _check_symmetric(node: ir.Node) -> None:
    _, scale, zero_point = node.inputs
    values = zero_point.const_value.numpy()
    assert values.dtype == np.int8, f"{node.name}: {values.dtype}"
    assert not values.any(), node.name
    assert (scale.const_value.numpy() > 0).all(), node.name
    if node.op_type == "QuantizeLinear":
        assert scale.const_value.numpy().ndim == 0, f"{node.name}: activations have one scale"


def _check_operands(node: ir.Node) -> None:
    operator = WEIGHTED[node.op_type]
    data, weight = (node.inputs[i] for i in (operator.data, operator.weight))
    assert _dequantized(data) == _dequantized(weight), f"{node.name}: one operand in integers, one in float"
    assert not any(map(_dequantized, node.inputs[2:])), f"{node.name}: the bias must be plain float"
    if _dequantized(weight):
        scale = weight.producer().inputs[1].const_value.numpy()
        if scale.ndim:
            assert node.op_type != "ConvTranspose", f"{node.name}: per channel"
            stored = weight.producer().inputs[0]
            axis = weight.producer().attributes["axis"].as_int()
            assert axis == operator.channel_axis(node, len(stored.shape)), node.name
            assert scale.shape == (stored.shape[axis],), node.name


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"
