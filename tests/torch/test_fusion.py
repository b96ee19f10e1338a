"""What PyTorch users fuse by hand (fuse_modules, FloatFunctional, ReLU6 -> ReLU) fuses without a word."""

import pytest
from flow import check, quantize

torch = pytest.importorskip("torch")

import onnx_ir as ir  # noqa: E402
from torch import nn  # noqa: E402
from torch_modules import BasicBlock, pictures, settled  # noqa: E402

from onnxq.torch import export  # noqa: E402


class Joined(nn.Module):
    """Two branches, joined by a function, and another convolution after it."""

    def __init__(self, join, width=8):
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 3, padding=1)
        self.join = join
        self.last = nn.Conv2d(width, 8, 1)

    def forward(self, x):
        return self.last(self.join(self.left(x), self.right(x)))


def conv(*after, last=True):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *after, *([nn.Conv2d(8, 4, 1)] if last else []))


def linear(*after):
    return nn.Sequential(nn.Linear(8, 16), *after, nn.Linear(16, 4))


def transposed(*after):
    return nn.Sequential(nn.ConvTranspose2d(3, 8, 3, stride=2), *after, nn.Conv2d(8, 4, 1))


def vectors(count):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


CASES = {
    "conv-bn": (conv(nn.BatchNorm2d(8)), {"Conv": 2}),
    "conv-bn-relu": (conv(nn.BatchNorm2d(8), nn.ReLU()), {"Conv": 2}),
    "conv-bn-relu in place": (conv(nn.BatchNorm2d(8), nn.ReLU(inplace=True)), {"Conv": 2}),
    "conv-relu": (conv(nn.ReLU()), {"Conv": 2}),
    "conv-relu6": (conv(nn.ReLU6()), {"Conv": 2}),
    "linear-bn": (linear(nn.BatchNorm1d(16)), {"Gemm": 2}),
    "linear-relu": (linear(nn.ReLU()), {"Gemm": 2}),
    "linear-bn-relu": (linear(nn.BatchNorm1d(16), nn.ReLU()), {"Gemm": 2}),
    "add": (Joined(lambda a, b: a + b), {"Conv": 3, "Add": 1}),
    "add-relu": (Joined(lambda a, b: torch.relu(a + b)), {"Conv": 3, "Add": 1}),
    "cat": (Joined(lambda a, b: torch.cat([a, b], 1), 16), {"Conv": 3, "Concat": 1}),
    "mul": (Joined(lambda a, b: a * b), {"Conv": 3, "Mul": 1}),
    "basic block": (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), BasicBlock(), nn.Conv2d(16, 4, 1)),
        {"Conv": 5, "Add": 1},
    ),
}


def exported(module, folder, example):
    module = settled(module)
    export(module, example[:2], folder / "m.onnx")
    return module, ir.load(folder / "m.onnx")


@pytest.mark.parametrize("name", CASES)
def test_it_fuses_on_onnx_runtime(name, tmp_path):
    module, planned = CASES[name]
    example = (vectors if name.startswith("linear") else pictures)(8)
    module, model = exported(module, tmp_path, example)
    flow = quantize(
        model, "onnxruntime", {model.graph.inputs[0].name: example.numpy()}, quantize_outputs=True
    )
    check(flow)  # ONNX Runtime has an integer kernel for every planned node
    assert {op: flow.planned(op) for op in planned} == planned
    assert set(flow.plan.integer_nodes.values()) == set(planned)
    assert not flow.floats & {"BatchNormalization", "Relu", "Clip"}
    assert {node.op_type for node in flow.simple.graph} <= {*planned, "Relu", "Clip"}


@pytest.mark.parametrize("after", [(nn.BatchNorm2d(8),), (nn.BatchNorm2d(8), nn.ReLU())])
def test_transposed_convolutions_take_in_their_norm(after, tmp_path):
    _, model = exported(transposed(*after), tmp_path, pictures(8))
    flow = quantize(model, "tensorrt", {"input": pictures(8).numpy()})
    check(flow)
    assert flow.plan.integer_nodes == {"0/ConvTranspose": "ConvTranspose", f"{1 + len(after)}/Conv": "Conv"}
    assert "BatchNormalization" not in {node.op_type for node in flow.simple.graph}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_no_point_stands_between_what_fuses(target, tmp_path):
    """The tensor between a convolution and its ReLU is never quantized: only what ReLU gives."""
    _, model = exported(conv(nn.BatchNorm2d(8), nn.ReLU()), tmp_path, pictures(8))
    flow = quantize(model, target, {"input": pictures(8).numpy()}, quantize_outputs=True)
    readers = {point.tensor: point.consumer for point in flow.plan.points}
    relu = next(node for node in flow.simple.graph if node.op_type == "Relu")
    assert relu.outputs[0].name in readers
    assert relu.inputs[0].name not in readers


def test_a_norm_without_a_layer_before_it_still_works(tmp_path):
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    _, model = exported(module, tmp_path, pictures(8))
    flow = quantize(model, "onnxruntime", {"input": pictures(8).numpy()}, quantize_outputs=True)
    check(flow)
    assert flow.planned("Conv") >= 1
