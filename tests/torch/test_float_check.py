"""Modules that other tools have prepared or converted are refused, with what is in the way and what to do."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
tq = pytest.importorskip("torch.ao.quantization")

from torch import nn  # noqa: E402
from torch.ao.quantization import quantize_fx  # noqa: E402
from torch_modules import BasicBlock, Net, pictures, settled  # noqa: E402

import onnxq  # noqa: E402
import onnxq.torch  # noqa: E402
from onnxq.core.errors import ConfigError, ModelError, OnnxqError  # noqa: E402
from onnxq.torch.float_check import check_float  # noqa: E402

X = pictures(4)
CONFIG = onnxq.QuantConfig(verify="off", threads=1)


class Eager(Net):
    """As eager mode wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.plus = nn.quantized.FloatFunctional()

    def forward(self, x):
        """Between stubs, with a sum of its own."""
        x = self.stem(self.quant(x))
        return self.dequant(self.head(torch.relu(self.plus.add(self.body(x), x)).mean((2, 3))))


def prepared():
    module = settled(Eager())
    module.qconfig = tq.get_default_qconfig("x86")
    module = tq.prepare(module)
    module(X)
    return module


def trained():
    module = Eager().train()
    module.qconfig = tq.get_default_qat_qconfig("x86")
    module = tq.prepare_qat(module)
    module(X)
    return module.eval()


def graph():
    module = quantize_fx.prepare_fx(settled(BasicBlock(3, 8)), tq.get_default_qconfig_mapping("x86"), X)
    module(X)
    return module


def pt2e():
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    module = torch.export.export(settled(Net()), (X,)).module()
    module = flow.prepare_pt2e(module, onnxq.torch.quantizer("tensorrt", X))
    module(X)
    return module


def converted_pt2e():
    return pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e").convert_pt2e(pt2e())


MADE = {
    "prepare": (prepared, "'stem.0.activation_post_process' is an observer"),
    "convert": (lambda: tq.convert(prepared()), "'stem.0' is a quantized Conv2d"),
    "prepare_qat": (trained, "_fake_quant' is a fake quantizer"),
    "convert after prepare_qat": (lambda: tq.convert(trained()), "is a quantized Conv2d"),
    "quantize_dynamic": (
        lambda: tq.quantize_dynamic(nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4)).eval()),
        "'0' is a quantized LSTM",
    ),
    "prepare_fx": (graph, "is an observer"),
    "convert_fx": (lambda: quantize_fx.convert_fx(graph()), "its graph calls quantize_per_tensor"),
    "convert_to_reference_fx": (
        lambda: quantize_fx.convert_to_reference_fx(graph()),
        "is a quantized Conv2d|its graph calls quantize_per_tensor",
    ),
    "prepare_pt2e": (pt2e, "is an observer"),
    "convert_pt2e": (converted_pt2e, r"its graph calls quantized_decomposed.*onnxq\.requantize\(\)"),
    "inside another module": (lambda: nn.Sequential(nn.Identity(), prepared()), "'1.stem.0.activation"),
}
"""Tool -> what it makes, and what is said of it."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", MADE)
def test_what_other_tools_made_is_refused(tmp_path, tool):
    make, message = MADE[tool]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    for act in (
        lambda: onnxq.torch.export(module, X, tmp_path / "o.onnx"),
        lambda: onnxq.torch.PTQ(CONFIG).prepare(module, X),
        lambda: onnxq.torch.prepare_qat(module, X, config=CONFIG),
        lambda: onnxq.quantize_static(module, tmp_path / "o.onnx", [X], CONFIG, example_inputs=X),
        lambda: onnxq.quantize_dynamic(module, tmp_path / "o.onnx", example_inputs=X),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            act()
        assert "torch.where" not in str(caught.value)
        assert "Give the" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_what_was_only_fused_or_has_stubs_is_float():
    module = settled(Eager())
    module.qconfig = tq.get_default_qconfig("x86")
    check_float(module)
    check_float(tq.fuse_modules(module, [["stem.0", "stem.1", "stem.2"]]))
    check_float(torch.fx.symbolic_trace(Net()))
    check_float(torch.export.export(settled(Net()), (X,)).module())


def test_our_own_are_refused_elsewhere():
    module = settled(Net())
    ours = onnxq.torch.prepare_qat(module, X, config=CONFIG)
    for given in (ours, nn.Sequential(ours)):
        with pytest.raises(
            ModelError, match=r"was prepared already: train it, then pass it to .*convert_qat"
        ):
            check_float(given)
    ptq = onnxq.torch.PTQ(CONFIG)
    observed = ptq.prepare(module, X)
    with pytest.raises(ModelError, match=r"is observed by .*PTQ: convert it there, or release\(\) it first"):
        onnxq.torch.PTQ(CONFIG).prepare(copy.deepcopy(observed), X)
    check_float(ptq.release(observed))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.trace(settled(Net()), X), "is TorchScript"),
        (lambda: torch.jit.script(settled(Net())), "is TorchScript"),
        (lambda: torch.export.export(settled(Net()), (X,)), r"give program\.module\(\)"),
        (lambda: Net, "expected a torch.nn.Module"),
    ],
)
def test_what_is_no_module_is_refused(tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        onnxq.torch.export(make(), X, tmp_path / "o.onnx")
    with pytest.raises(OnnxqError):
        onnxq.quantize_static(make(), tmp_path / "o.onnx", [X], example_inputs=X)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_torch_export_is_taken(tmp_path):
    """It has no modes: eval() raises."""
    module = torch.export.export(settled(Net()), (X,)).module()
    assert onnxq.torch.export(module, X, tmp_path / "o.onnx").sqnr[4] > 90
    ptq = onnxq.torch.PTQ(CONFIG)
    observed = ptq.prepare(module, X, inplace=True)
    observed(X)
    assert ptq.convert(observed, tmp_path / "int8.onnx").plan.points


def test_packed_weights_in_a_plain_module_are_refused():
    """torchao's quantize_() leaves the module's class as it was, and replaces its tensors."""
    ao = pytest.importorskip("torchao.quantization")
    module = nn.Sequential(nn.Linear(32, 32)).eval()
    ao.quantize_(module, ao.Int8WeightOnlyConfig())
    with pytest.raises(ModelError, match=r"'weight' of '0' is packed \(torchao\..*as it was before"):
        onnxq.torch.export(module, torch.ones(2, 32), "unused.onnx")
