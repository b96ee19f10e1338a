"""Training through fake quantization: the file gives what the module gave, and Q/DQ stand where PTQ puts them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from calibrators.session import open_session  # noqa: E402
from onnxq.core.config import QuantConfig  # noqa: E402
from onnxq.core.errors import CalibrationError, ConfigError, ModelError, TargetError  # noqa: E402
from onnxq.core.plan import QuantPlan  # noqa: E402
from onnxq.pipelines.prepare import prepare  # noqa: E402
from onnxq.torch import (  # noqa: E402  # noqa: E402
    convert_qat,
    export,
    freeze_batch_norms,
    freeze_ranges,
    prepare_qat,
    skip_quant,
)
from onnxq.torch.qat.fake_quantize import FakeQuantize  # noqa: E402
from onnxq.torch.qat.module import FAKE_QUANTIZERS  # noqa: E402

CONFIG = QuantConfig(verify="off", method="minmax", threads=1)
EXAMPLE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = ("onnxruntime", "tensorrt", "openvino", "vitis-xint8", "academic-w4a4")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class Net(nn.Module):
    """What networks are made of, and what a user's class has besides."""

    classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = Block(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.leaky = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)
        self.mix = nn.Conv2d(6, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, self.classes)
        self.notes = {"seen": 3}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(x))
        y = self.mix(self.pool(self.leaky(self.norm(self.up(x)))))
        y = torch.cat([y, x * torch.sigmoid(y)], 1)[:, 4:12]
        return self.head(self.drop(y.mean((2, 3))))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).argmax(1)


def settled(module: nn.Module, example: torch.Tensor = EXAMPLE) -> nn.Module:
    """With statistics that are not those of a new module."""
    torch.manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
        for _ in range(20):
            module.train()(example)
    return module.eval()


@pytest.fixture(scope="module")
def net() -> Net:
    return settled(Net())


@pytest.fixture(scope="module")
def prepared(net: Net) -> Callable[[str], nn.Module]:
    """Copies of ``net`` prepared for a target: tracing and exporting it take seconds, and copies are equal."""

    @cache
    def original(target: str) -> nn.Module:
        return prepare_qat(net, EXAMPLE, target, CONFIG)

    return lambda target: copy.deepcopy(original(target))


@pytest.fixture(scope="module")
def float_file(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export(net, EXAMPLE, path)
    return path


@pytest.fixture(scope="module", params=TARGETS)
def trained(prepared, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    module = prepared(request.param)
    train(module)
    path = tmp_path_factory.mktemp("qat") / "out.onnx"
    return module, path, convert_qat(module, path)


def train(module: nn.Module, steps: int = 3, example: torch.Tensor = EXAMPLE) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        module(example).square().mean().backward()
        optimizer.step()
    module.eval()


def edges(plan: QuantPlan) -> list:
    return [(p.consumer, p.input_index, p.spec, len(plan.groups[p.group].tensors)) for p in plan.points]


def test_the_file_gives_what_the_module_gives(trained) -> None:
    module, path, result = trained
    fresh = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        expected = module(fresh).numpy()
    (given,) = open_session(path).run(None, {"x": fresh.numpy()})
    noise = np.square(expected - given).sum() / np.square(expected).sum()
    assert -10 * np.log10(noise) >= 25
    assert result.sqnr >= 25
    assert result.path == str(path)


def test_q_and_dq_stand_where_calibration_alone_would_put_them(trained, float_file: Path) -> None:
    _, path, result = trained
    config = CONFIG.model_copy(update={"target": result.plan.target})
    assert edges(result.plan) == edges(prepare(float_file, config)[1])
    assert sum(n.op_type == "DequantizeLinear" for n in onnx.load(path).graph.node) >= len(result.plan.points)


def test_every_edge_is_seen_in_training(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    prepare_qat(net, EXAMPLE, "tensorrt", CONFIG)
    assert "float in training" not in caplog.text


def test_the_scales_in_the_file_are_those_that_were_trained(trained) -> None:
    module, path, result = trained
    graph = onnx.load(path).graph
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    unclipped = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Clip"}
    quantized = {n.input[0]: stored[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear"}
    scales = {unclipped.get(name, name): scale for name, scale in quantized.items()} | quantized
    quantizers = module.get_submodule(FAKE_QUANTIZERS)
    checked = 0
    for name, group in result.plan.groups.items():
        if not group.constant and name in scales and hasattr(quantizers, name):
            assert scales[name] == quantizers.get_submodule(name).params.scale
            checked += 1
    assert checked >= 5


def test_weights_of_transposed_convolutions_are_quantized(trained) -> None:
    _, path, result = trained
    if result.plan.target == "onnxruntime":
        assert "ConvTranspose" not in result.plan.integer_nodes.values(), "it has no integer kernel there"
        return
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    (layer,) = [node for node in graph.node if node.op_type == "ConvTranspose"]
    weight = makers[layer.input[1]]
    assert weight.op_type == "DequantizeLinear"
    stored = {i.name: i.data_type for i in graph.initializer}
    assert stored[weight.input[0]] in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


# --- the module stays what it is -----------------------------------------------------------------------


def test_the_class_its_methods_and_attributes_stay(net: Net, prepared) -> None:
    module = prepared("onnxruntime")
    assert isinstance(module, Net)
    assert module.classes == 5
    assert module.notes == {"seen": 3}
    assert torch.equal(module.predict(EXAMPLE), module(EXAMPLE).argmax(1))
    names = [name for name, _ in module.named_parameters()]
    assert names == [name for name, _ in net.named_parameters()]


def test_the_users_module_is_not_changed(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module = prepare_qat(net, EXAMPLE, config=CONFIG)
    train(module)
    assert type(net) is Net
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.equal(module.state_dict()["head.weight"], before["head.weight"])


def test_norms_and_dropout_obey_the_mode(prepared) -> None:
    module = prepared("onnxruntime").eval()
    assert torch.equal(module(EXAMPLE), module(EXAMPLE))
    before = module.norm.running_mean.clone()
    module(EXAMPLE + 1)
    assert torch.equal(module.norm.running_mean, before)
    module.train()
    torch.manual_seed(0)
    assert not torch.equal(module(EXAMPLE), module(EXAMPLE))
    assert not torch.equal(module.norm.running_mean, before)


def test_one_norm_alone_can_be_put_to_eval(prepared) -> None:
    module = prepared("onnxruntime").train()
    module.norm.eval()
    before, other = module.norm.running_mean.clone(), module.block.bn1.running_mean.clone()
    module(EXAMPLE + 1)
    assert torch.equal(module.norm.running_mean, before)
    assert not torch.equal(module.block.bn1.running_mean, other)


def test_what_is_frozen_stays_frozen_through_train(prepared) -> None:
    module = prepared("onnxruntime")
    freeze_ranges(module)
    freeze_batch_norms(module)
    module.train()
    before = {name: value.clone() for name, value in module.named_buffers() if "weight" not in name}
    module(EXAMPLE * 3)
    assert all(torch.equal(v, before[n]) for n, v in module.named_buffers() if n in before)
    freeze_ranges(module, frozen=False)
    freeze_batch_norms(module, frozen=False)
    module.train()
    module(EXAMPLE * 3)
    assert not torch.equal(module.norm.running_mean, before["norm.running_mean"])


@pytest.mark.parametrize("training", [True, False])
def test_folding_norms_changes_nothing_but_the_rounding(net: Net, prepared, training: bool) -> None:
    """Without fake quantization the module computes what the user's does, statistics included."""

    class Through(nn.Module):
        def forward(self, x: torch.Tensor, observe: bool = True) -> torch.Tensor:
            return x

    plain = copy.deepcopy(net)
    module = prepared("onnxruntime")
    quantizers = module.get_submodule(FAKE_QUANTIZERS)
    for name in list(quantizers):
        quantizers[name] = Through()
    for one in (module, plain):
        one.train(training)
        one.drop.eval()
    fresh = torch.randn(4, 3, 16, 16)
    assert torch.allclose(module(fresh), plain(fresh), atol=1e-4)
    for (name, one), (_, other) in zip(plain.named_buffers(), module.named_buffers(), strict=False):
        if "running" in name:
            assert torch.allclose(one, other, atol=1e-4), name


def test_checkpoints_bring_everything_back(prepared, tmp_path) -> None:
    module = prepared("academic-w4a4")
    train(module)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = prepare_qat(settled(Net()), EXAMPLE * 2, "academic-w4a4", CONFIG)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(module.eval()(EXAMPLE), other.eval()(EXAMPLE))
    twin = copy.deepcopy(module)
    assert torch.equal(module(EXAMPLE), twin.eval()(EXAMPLE))
    assert twin.head.weight is not module.head.weight


def test_it_can_be_wrapped_for_distributed_training(prepared, tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(prepared("tensorrt"))
        train(wrapped)
        freeze_ranges(wrapped)
        assert convert_qat(wrapped, tmp_path / "out.onnx").sqnr >= 30
    finally:
        torch.distributed.destroy_process_group()


# --- options -------------------------------------------------------------------------------------------


def learned(module: nn.Module) -> int:
    return sum(isinstance(part, FakeQuantize) and part.learned for part in module.modules())


def test_scales_of_few_bits_are_learned_and_others_if_asked_for(net: Net, prepared) -> None:
    assert learned(prepared("onnxruntime")) == 0
    assert learned(prepared("academic-w4a4")) > 0
    module = prepare_qat(net, EXAMPLE, "onnxruntime", CONFIG, learn_scales=True)
    before = {n: p.detach().clone() for n, p in module.named_parameters() if n.endswith(".scale")}
    train(module)
    moved = [n for n, p in module.named_parameters() if n in before and not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_any_number_of_bits_for_research(net: Net, bits: int, tmp_path) -> None:
    module = prepare_qat(net, EXAMPLE, f"academic-w{bits}a{bits}", CONFIG)
    train(module, steps=1)
    plan = convert_qat(module, tmp_path / "out.onnx").plan
    graph = ir.load(tmp_path / "out.onnx").graph
    stored = graph.initializers["block.conv1.weight_quantized"].const_value
    assert stored is not None
    assert len(np.unique(stored.numpy())) <= 2**bits
    assert plan.target == f"academic-w{bits}a{bits}"


@pytest.mark.parametrize("options", [{}, {"weight": "int4", "block_size": 16}], ids=str)
@pytest.mark.parametrize("units", [0, 1, 2])
def test_a_matrix_with_leading_axes_of_size_one_is_trained_as_the_matrix(
    tmp_path: Path, options: dict, units: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn([1] * units + [32, 24]) / 6)
            self.head = nn.Linear(24, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.nn.functional.gelu(x @ self.weight))

    example = torch.randn(2, 3, 4, 32)
    module = prepare_qat(Stack(), example, config=CONFIG.model_copy(update=options))
    train(module, steps=1, example=example)
    result = convert_qat(module, tmp_path / "out.onnx")
    assert not result.warnings
    assert "in float in training" not in caplog.text
    (scale,) = (params.scale for name, params in result.plan.params.items() if name == "weight")
    assert scale.shape == ((2, 24) if options else (24,))


def test_calibration_takes_a_loader_with_labels(net: Net, prepared) -> None:
    loader = [(EXAMPLE * 2, torch.zeros(4)), (EXAMPLE, torch.zeros(4))]
    wide = prepare_qat(net, EXAMPLE, "tensorrt", CONFIG, data=loader)
    scales = [m.get_submodule(FAKE_QUANTIZERS).x.params.scale for m in (wide, prepared("tensorrt"))]
    assert scales[0] == pytest.approx(2 * scales[1], rel=1e-5)
    with pytest.raises(CalibrationError, match="item 0 of the data"):
        prepare_qat(Leaky().eval(), EXAMPLE, "tensorrt", CONFIG, data=[()])


def test_excluded_nodes_stay_float_in_training_too(net: Net) -> None:
    config = CONFIG.model_copy(update={"exclude": ("block.*",)})
    names = list(prepare_qat(net, EXAMPLE, "tensorrt", config).get_submodule(FAKE_QUANTIZERS))
    assert "mix_weight" in names
    assert not any(name.startswith("block_") for name in names)


def mark(module: nn.Module) -> None:
    module.block.skip_quant = True


@pytest.mark.parametrize(
    "skip",
    [mark, lambda m: skip_quant(m, "block.*"), lambda m: skip_quant(m, Block)],
    ids=["mark", "glob", "type"],
)
def test_marked_layers_stay_float_in_training_too(net: Net, tmp_path: Path, skip: Callable) -> None:
    marked = copy.deepcopy(net)
    skip(marked)
    module = prepare_qat(marked, EXAMPLE, "tensorrt", CONFIG)
    names = list(module.get_submodule(FAKE_QUANTIZERS))
    assert "mix_weight" in names
    assert not any(name.startswith("block_") for name in names)
    train(module, steps=1)
    plan = convert_qat(module, tmp_path / "out.onnx").plan
    assert not any(point.consumer.startswith("block.conv") for point in plan.points)
    assert any(point.consumer.startswith("mix") for point in plan.points)


def test_layers_are_skipped_and_get_options_of_their_own(net: Net, tmp_path: Path) -> None:
    layers = {"mix": {"per_tensor": True}}
    module = prepare_qat(net, EXAMPLE, "tensorrt", CONFIG, skip=[Block], layers=layers)
    quantizers = module.get_submodule(FAKE_QUANTIZERS)
    assert not any(name.startswith("block_") for name, _ in quantizers.named_children())
    assert quantizers.get_submodule("mix_weight").scale.ndim == 0
    plan = convert_qat(module, tmp_path / "out.onnx").plan
    assert not any(point.consumer.startswith("block.conv") for point in plan.points)
    with pytest.raises(ConfigError, match="no part called 'blok'; did you mean 'block'"):
        prepare_qat(net, EXAMPLE, "tensorrt", CONFIG, skip=["blok"])


# --- places --------------------------------------------------------------------------------------------


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(nn.functional.max_pool2d(nn.functional.leaky_relu(self.a(x)), 2))


def readers(module: nn.Module, target: str) -> set[tuple[str, str]]:
    plan = convert_plan(module, target)
    return {(point.tensor.split("_")[0], point.consumer) for point in plan.points}


def convert_plan(module: nn.Module, target: str, **options) -> QuantPlan:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return convert_qat(
            prepare_qat(module, EXAMPLE, target, CONFIG.model_copy(update=options)), Path(folder) / "out.onnx"
        ).plan


def test_leaky_relu_and_max_pool() -> None:
    tensorrt = readers(Leaky().eval(), "tensorrt")
    assert ("x", "a/Conv") in tensorrt, "the input is quantized"
    assert "LeakyRelu" not in {consumer for _, consumer in tensorrt}, "nothing between Conv and LeakyReLU"
    plan = convert_plan(Leaky().eval(), "onnxruntime", quantize_outputs=True)
    pooled = [
        p for p in plan.points if p.consumer in ("MaxPool", "b/Conv") and not plan.groups[p.group].constant
    ]
    assert len(pooled) == 2, "before and after MaxPool"
    assert len({point.group for point in pooled}) == 1, "which share their scale"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.one(x), self.two(x)
        return nn.functional.gelu(torch.softmax(q @ k.transpose(1, 2), -1) @ x) + 1.5


def test_products_of_computed_matrices(tmp_path) -> None:
    x = torch.randn(2, 6, 8)
    module = prepare_qat(Attention().eval(), x, "tensorrt", CONFIG)
    train(module, example=x)
    result = convert_qat(module, tmp_path / "out.onnx")
    assert list(result.plan.integer_nodes.values()).count("MatMul") == 4
    assert result.sqnr >= 30


class Scaled(nn.Module):
    """ONNX folds what stands before the convolution into its weights; PyTorch does not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


def test_what_has_no_place_in_training_is_said_and_calibrated(tmp_path, caplog) -> None:
    module = prepare_qat(settled(Scaled()), EXAMPLE, "tensorrt", CONFIG)
    assert "2 of 2 quantized tensors are in float in training" in caplog.text
    result = convert_qat(module, tmp_path / "out.onnx")
    assert len(result.plan.params) == 2


# --- what is refused -----------------------------------------------------------------------------------


def test_clear_errors(net: Net, prepared, tmp_path) -> None:
    with pytest.raises(ModelError, match="was not prepared"):
        convert_qat(net, tmp_path / "out.onnx")
    with pytest.raises(TargetError, match="unknown target"):
        prepare_qat(nn.Linear(16, 2), EXAMPLE, "abacus")
    with pytest.raises(TargetError, match="unknown target"):
        prepare_qat(net, (), "abacus")  # before anything else is looked at
    with pytest.raises(ConfigError, match="cannot be called with these"):
        prepare_qat(net, (), "tensorrt")
    module = prepared("tensorrt")
    with pytest.raises(ModelError, match="prepared already"):
        prepare_qat(module, EXAMPLE, "tensorrt", CONFIG)
    with torch.no_grad():
        module.head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        convert_qat(module, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)
        self.register_buffer("shift", torch.ones(6))

    def forward(self, a: torch.Tensor, b: torch.Tensor, *, scale: float = 2.0) -> dict[str, torch.Tensor]:
        left, right = self.left(a), self.right(b)
        return {"sum": left + right * scale, "apart": left - self.shift}


def test_several_inputs_and_outputs_by_name(tmp_path) -> None:
    example = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    module = prepare_qat(Several().eval(), example, "tensorrt", CONFIG)
    given = module(b=example["b"], a=example["a"])
    assert set(given) == {"sum", "apart"}
    given["sum"].sum().backward()
    assert module.left.weight.grad is not None
    result = convert_qat(module, tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [i.name for i in graph.input] == ["a", "b"]
    assert [o.name for o in graph.output] == ["sum", "apart"]
    assert result.sqnr >= 30


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).reshape(3, 2, 3)


def test_a_module_that_fixes_its_batch_size_is_trained_with_that(caplog, tmp_path) -> None:
    x = torch.randn(3, 4)
    module = prepare_qat(Fixed().eval(), x, "tensorrt", CONFIG)
    assert "batches of 3 only" in caplog.text
    train(module, example=x)
    assert convert_qat(module, tmp_path / "out.onnx").sqnr >= 30


class Noisy(nn.Module):
    """Adds noise to one of its outputs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
        )

    def forward(self, x):
        found = self.layers(x)
        return found, found + torch.randn_like(found)


def test_noise_is_no_difference_of_the_written_file(tmp_path):
    torch.manual_seed(0)
    example = torch.randn(2, 3, 8, 8)
    prepared = prepare_qat(Noisy().eval(), example, data=[{"x": example.numpy()}] * 4)
    result = convert_qat(prepared, tmp_path / "out.onnx")
    assert result.sqnr >= 30
    assert not result.warnings
