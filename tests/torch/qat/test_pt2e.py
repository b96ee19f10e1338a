"""PyTorch's own flow with our plans: what it exports is quantized where `quantize_static` would quantize."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
from torch_modules import BasicBlock, settled  # noqa: E402

import onnxq.torch  # noqa: E402
from calibrators.session import open_session  # noqa: E402
from onnxq.core.config import QuantConfig  # noqa: E402
from onnxq.core.errors import ConfigError, TargetError  # noqa: E402
from onnxq.core.numerics import sqnr  # noqa: E402
from onnxq.core.plan import QuantPlan  # noqa: E402
from onnxq.pipelines.prepare import prepare  # noqa: E402

EXAMPLE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCH = ({0: torch.export.Dim.AUTO},)


class Net(torch.nn.Module):
    """As ResNet-20: a stem, residual blocks, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.blocks = torch.nn.Sequential(BasicBlock(), BasicBlock(16, 16))
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def config(target: str) -> QuantConfig:
    return QuantConfig(target=target, verify="off", method="minmax", threads=1)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return settled(Net())


def exported(module: torch.nn.Module, training: bool) -> torch.fx.GraphModule:
    module = copy.deepcopy(module).train(training)
    return torch.export.export(module, (EXAMPLE,), dynamic_shapes=BATCH).module()


def edges(plan: QuantPlan) -> Counter:
    """What is quantized; names of nodes are the exporter's, and differ."""
    sizes = {name: len(group.tensors) for name, group in plan.groups.items()}
    return Counter(
        (plan.integer_nodes.get(p.consumer), p.input_index, p.spec, sizes[p.group]) for p in plan.points
    )


@pytest.mark.parametrize(("target", "training"), [("onnxruntime", True), ("tensorrt", False)])
def test_what_is_exported_is_quantized_as_our_plan_says(net: Net, target: str, training: bool, tmp_path):
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    from torchao.quantization.pt2e import move_exported_model_to_eval

    prepared = (flow.prepare_qat_pt2e if training else flow.prepare_pt2e)(
        exported(net, training), onnxq.torch.quantizer(target, EXAMPLE, training=training)
    )
    if training:
        train(prepared)
        move_exported_model_to_eval(prepared)
    prepared(EXAMPLE)
    converted = flow.convert_pt2e(prepared)
    torch.onnx.export(converted, (EXAMPLE,), tmp_path / "pt2e.onnx", dynamo=True, dynamic_shapes=BATCH)
    name = ir.load(tmp_path / "pt2e.onnx").graph.inputs[0].name
    data = [{name: EXAMPLE.numpy()}]
    result = onnxq.requantize(tmp_path / "pt2e.onnx", tmp_path / "out.onnx", data, config(target))
    assert result.calibrated == ()
    onnxq.torch.export(net, EXAMPLE, tmp_path / "float.onnx")
    _, plan = prepare(tmp_path / "float.onnx", config(target))
    assert edges(result.plan) == edges(plan)
    with torch.no_grad():
        wanted = converted(EXAMPLE).numpy()
    given = open_session(tmp_path / "out.onnx").run(None, data[0])[0]
    assert sqnr(wanted, given) > 40


def train(module: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
    for _ in range(2):
        optimizer.zero_grad()
        module(EXAMPLE).square().mean().backward()
        optimizer.step()


def test_formats_that_torchao_has_not_are_an_error(net: Net) -> None:
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    with pytest.raises(TargetError, match=r"torchao does not have the number format of .* on vitis-xint8"):
        flow.prepare_pt2e(exported(net, training=False), onnxq.torch.quantizer("vitis-xint8", EXAMPLE))


def test_marked_layers_of_the_exported_module_stay_float(net: Net) -> None:
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    module = exported(net, training=False)
    onnxq.torch.skip_quant(module, "blocks.*")
    prepared = flow.prepare_pt2e(module, onnxq.torch.quantizer("tensorrt", EXAMPLE))
    calls = prepared.graph.find_nodes(op="call_module")
    observed = [str(node.args[0]) for node in calls if "post_process" in str(node.target)]
    assert "head_weight" in observed
    assert not [name for name in observed if name.startswith("blocks")]


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "onnxq.torch.qat.pt2e", raising=False)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"needs torchao: pip install 'onnxq\[torchao\]'"):
        _ = onnxq.torch.quantizer
