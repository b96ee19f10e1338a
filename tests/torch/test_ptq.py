"""Calibration in the user's loop: the result is that of quantize_static on the same samples."""

import copy
import gc
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_modules import Net, pictures, settled  # noqa: E402

import onnxq  # noqa: E402
from onnxq.core.config import QuantConfig  # noqa: E402
from onnxq.core.errors import CalibrationError, ConfigError  # noqa: E402
from onnxq.torch import PTQ, export, skip_quant  # noqa: E402

DATA = pictures(20)
CONFIG = QuantConfig(verify="off", threads=1)


@pytest.fixture(scope="module")
def net():
    return settled(Net())


@pytest.fixture(scope="module")
def prepared(net):
    """A copy under observation, that has seen all samples one by one."""
    ptq = PTQ(CONFIG)
    model = ptq.prepare(net, DATA[:1])
    for x in DATA:
        model(x[None])
    return ptq, model


def test_the_callable_gives_what_the_module_gives(net, prepared):
    _, model = prepared
    assert model is not net
    assert not net._forward_pre_hooks
    assert torch.equal(copy.deepcopy(model).forward(DATA), net(DATA))
    assert [name for name, _ in model.named_modules()] == [name for name, _ in net.named_modules()]


def test_the_same_samples_give_the_same_model(net, prepared, tmp_path):
    ptq, model = prepared
    result = ptq.convert(model, tmp_path / "loop.onnx")
    export(net, DATA[:1], tmp_path / "float.onnx")
    again = onnxq.quantize_static(
        tmp_path / "float.onnx", tmp_path / "file.onnx", [(x[None], 0) for x in DATA], CONFIG
    )
    assert (tmp_path / "loop.onnx").read_bytes() == (tmp_path / "file.onnx").read_bytes()
    assert result.quality.sqnr == again.quality.sqnr > 25
    assert result.quality.samples == 4
    assert result.judged_on == "held-out samples"
    assert result.table.activations.keys() == again.table.activations.keys()


def test_a_module_is_exported_and_quantized_in_one_call(net, prepared, tmp_path):
    ptq, model = prepared
    ptq.convert(model, tmp_path / "loop.onnx")
    batches = [{"x": x[None]} for x in DATA]
    result = onnxq.quantize_static(net, tmp_path / "call.onnx", batches, CONFIG, example_inputs=DATA[:1])
    assert (tmp_path / "loop.onnx").read_bytes() == (tmp_path / "call.onnx").read_bytes()
    assert result.request.model.endswith("Net.onnx")
    assert result.table.activations


def test_a_module_without_an_example_is_refused(net, tmp_path):
    with pytest.raises(ConfigError, match="Net has to be exported first: give example_inputs"):
        onnxq.quantize_static(net, tmp_path / "o.onnx", [DATA])


def test_a_module_in_training_mode_is_refused(net):
    with pytest.raises(ConfigError, match=r"it is in training mode: call eval\(\) first"):
        PTQ().prepare(copy.deepcopy(net).train(), DATA[:1])


def test_calls_that_do_not_go(prepared):
    _, model = prepared
    model.stem.train()
    with pytest.raises(ConfigError, match="its part 'stem' is in training mode"):
        model(DATA[:1])
    model.eval()
    with pytest.raises(CalibrationError, match="has shape"):
        model(DATA[:1, :, :7])
    with pytest.raises(ConfigError, match="cannot be called with these inputs"):
        model(DATA, DATA)


def test_other_weights_than_those_exported_are_refused(net, tmp_path):
    ptq = PTQ(CONFIG)
    model = ptq.prepare(net, DATA[:1])
    with pytest.raises(CalibrationError, match="no batch was observed yet"):
        ptq.convert(model, tmp_path / "o.onnx")
    model(DATA)
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(ConfigError, match="have changed since prepare"):
        ptq.convert(model, tmp_path / "o.onnx")
    assert list(tmp_path.iterdir()) == []


def test_models_of_others_are_refused(net, prepared, tmp_path):
    ptq, model = prepared
    with pytest.raises(ConfigError, match="was not prepared here"):
        ptq.convert(net, tmp_path / "o.onnx")
    with pytest.raises(ConfigError, match="prepared already"):
        ptq.prepare(model, DATA[:1])


def test_in_place_and_released(net, tmp_path):
    module, ptq = copy.deepcopy(net), PTQ(CONFIG)
    assert ptq.prepare(module, DATA[:1], inplace=True) is module
    module(DATA)
    result = ptq.convert(module, tmp_path / "o.onnx")
    assert result.statistics.samples == 16
    assert ptq.release(module) is module
    assert not module._forward_pre_hooks
    with pytest.raises(ConfigError, match="was not prepared here"):
        ptq.convert(module, tmp_path / "o.onnx")


def test_a_forgotten_model_leaves_nothing_behind(net):
    before = threading.active_count()
    ptq = PTQ(CONFIG)
    model = ptq.prepare(net, DATA[:1])
    model(DATA[:2])
    folder = Path(ptq._prepared[model]._folder.name)
    assert folder.exists()
    del model
    gc.collect()
    assert not folder.exists()
    assert threading.active_count() <= before + 1


# --- layers ---------------------------------------------------------------------------------------


def test_layers_are_skipped_by_name_by_type_and_by_mark(net, tmp_path):
    module = copy.deepcopy(net)
    skip_quant(module, "stem.*")
    assert module.stem[0].skip_quant
    ptq = PTQ(CONFIG, skip=[nn.Linear])
    model = ptq.prepare(module, DATA[:1])
    model(DATA)
    result = ptq.convert(model, tmp_path / "o.onnx")
    assert "body/Conv" in result.plan.integer_nodes
    assert {"stem.0/Conv", "head/Gemm"} <= result.plan.float_nodes.keys()
    module.body.skip_quant = True
    batches = [DATA]
    with pytest.raises(onnxq.ModelError, match="nothing to quantize"):
        onnxq.quantize_static(
            module, tmp_path / "o.onnx", batches, QuantConfig(exclude="head/*"), example_inputs=DATA[:1]
        )


def test_no_warning_of_what_left_no_node(net, caplog):
    PTQ(CONFIG, skip=["stem.1", nn.ReLU, "head"]).prepare(net, DATA[:1])
    assert [r for r in caplog.records if r.name.startswith("onnxq") and "matches no node" in r.message] == []


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("boddy", r"no part called 'boddy'; did you mean 'body'\?"),
        (nn.LSTM, "holds no LSTM"),
        (3, "is not a layer"),
    ],
)
def test_layers_that_there_are_not(net, which, message):
    with pytest.raises(ConfigError, match=message):
        PTQ(skip=[which]).prepare(net, DATA[:1])


def test_layers_have_options_of_their_own(net, tmp_path):
    layers = {"head": {"method": "entropy", "per_tensor": True}, nn.Conv2d: {"weight_method": "absmax"}}
    ptq = PTQ(QuantConfig(verify="off", method="minmax", correct="none"), layers=layers)
    model = ptq.prepare(net, DATA[:1])
    model(DATA)
    result = ptq.convert(model, tmp_path / "o.onnx")
    groups = {point.consumer: {} for point in result.plan.points}
    for point in result.plan.points:
        groups[point.consumer][point.input_index] = result.plan.groups[point.group]
    assert groups["head/Gemm"][0].method == "entropy"
    assert groups["body/Conv"][0].method is None
    assert groups["head/Gemm"][1].spec.axis is None
    assert groups["body/Conv"][1].spec.axis == 0
    scale = result.plan.params[groups["body/Conv"][1].name].scale
    weight = net.body.weight.detach().numpy()
    np.testing.assert_allclose(scale, np.abs(weight).max((1, 2, 3)) / 127, rtol=1e-6)


# --- several inputs ---------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 4)

    def forward(self, x, *, scale, power=1):
        return self.fc((self.conv(x) * scale).mean((2, 3))) ** power


def test_arguments_by_name_and_constants(tmp_path):
    scale = torch.rand(20, 1, 1, 1)
    ptq = PTQ(CONFIG)
    model = ptq.prepare(Two().eval(), {"x": DATA[:2], "scale": scale[:2]})
    for i in range(0, 20, 5):
        model(scale=scale[i : i + 5], x=DATA[i : i + 5], **({"power": 1} if i else {}))
    with pytest.raises(CalibrationError, match="argument 'power' of Two is 2, but was 1 in the example"):
        model(DATA, scale=scale, power=2)
    result = ptq.convert(model, tmp_path / "o.onnx")
    assert result.statistics.samples == 16
    session = ort.InferenceSession(str(tmp_path / "o.onnx"))
    assert [value.name for value in session.get_inputs()] == ["x", "scale"]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node}


# --- modules as they are, in the other functions ----------------------------------------------------


def test_a_module_is_quantized_dynamically(net, tmp_path):
    config = CONFIG.model_copy(update={"exclude": ("op:Gather",)})
    module = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32)
    ).eval()
    example = torch.randn(2, 16)
    onnxq.torch.skip_quant(module, "2")
    result = onnxq.quantize_dynamic(module, tmp_path / "o.onnx", example_inputs=example)
    assert set(result.plan.integer_nodes) == {"0/Gemm", "4/Gemm"}
    loader = [(torch.randn(2, 16), torch.zeros(2)) for _ in range(5)]
    result = onnxq.quantize_dynamic(module, tmp_path / "o.onnx", config, loader, example_inputs=example)
    assert result.quality.samples == 2
    assert result.plan.integer_nodes.keys() == {"0/Gemm", "4/Gemm"}
    with pytest.raises(ConfigError, match="has to be exported first: give example_inputs"):
        onnxq.quantize_dynamic(module, tmp_path / "o.onnx")


class Recurrent(nn.Module):
    """An LSTM and two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(32, 64, batch_first=True)
        self.fc, self.head = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        """Read a sequence."""
        return self.head(torch.relu(self.fc(self.rnn(x)[0])))


@pytest.mark.parametrize(
    ("selection", "modules"),
    [
        ({}, {"rnn", "fc", "head"}),
        ({"only": {nn.LSTM}}, {"rnn"}),
        ({"only": {nn.LSTM, "head"}}, {"rnn", "head"}),
        ({"only": {nn.Linear}, "skip": ["fc"]}, {"head"}),
        ({"skip": [nn.LSTM]}, {"fc", "head"}),
    ],
    ids=["all", "type", "type and name", "all but a name", "all but a type"],
)
def test_dynamic_mode_takes_types_and_names_of_modules(tmp_path, selection, modules):
    example = torch.randn(2, 5, 32)
    result = onnxq.quantize_dynamic(
        Recurrent(), tmp_path / "o.onnx", CONFIG, example_inputs=example, **selection
    )
    assert {name.split("/")[0] for name in result.plan.integer_nodes} == modules


def test_a_selection_that_matches_nothing_is_refused(tmp_path):
    for only, message in (({nn.Conv2d}, "holds no Conv2d"), ({"hed"}, "did you mean 'head'")):
        with pytest.raises(ConfigError, match=message):
            onnxq.quantize_dynamic(
                Recurrent(), tmp_path / "o.onnx", example_inputs=(torch.ones(2, 5, 32),), only=only
            )
    unused = Recurrent()
    unused.idle = nn.ReLU6()
    with pytest.raises(ConfigError, match="no nodes of the layers ReLU6"):
        onnxq.quantize_dynamic(
            unused, tmp_path / "o.onnx", example_inputs=torch.ones(2, 5, 32), only={nn.ReLU6}
        )
    with pytest.raises(ConfigError, match="so do only and skip"):
        onnxq.quantize_dynamic("m.onnx", tmp_path / "o.onnx", only={nn.Linear})


def test_statistics_of_a_module_serve_its_quantization(net, tmp_path):
    batches = [DATA[i : i + 2] for i in range(0, 8, 2)]
    file = tmp_path / "statistics.npz"
    config = QuantConfig(verify="off", target="tensorrt", save_statistics=file)
    onnxq.calibrate(net, batches, config, example_inputs=DATA[:1])
    config = QuantConfig(verify="off", target="tensorrt", from_table=file)
    result = onnxq.quantize_static(net, tmp_path / "o.onnx", config=config, example_inputs=DATA[:1])
    assert not [text for text in result.warnings if "ANOTHER MODEL" in text]


def test_modules_go_elsewhere(net, tmp_path):
    with pytest.raises(ConfigError, match="calibrate it with onnxq"):
        onnxq.Calibration(net)
    with pytest.raises(ConfigError, match="export it with its Q and DQ first"):
        onnxq.requantize(net, tmp_path / "o.onnx")
    with pytest.raises(ConfigError, match="the class Net itself: expected the path"):
        onnxq.quantize_static(type(net), tmp_path / "o.onnx")
