"""A module and its ONNX form give the same, under the names that the module has."""

import random
import subprocess
import sys

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_modules import Net, pictures, settled  # noqa: E402

import onnxq.torch  # noqa: E402
from onnxq.cli import commands  # noqa: E402
from onnxq.core.errors import ConfigError, ModelError  # noqa: E402
from onnxq.torch import export  # noqa: E402


def run(path, **feeds):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    module = settled(Net())
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    return module, path, export(module, pictures(1), path)


def test_the_onnx_model_takes_any_batch_and_gives_what_pytorch_gives(net):
    module, path, exported = net
    assert exported.dynamic
    assert exported.path == str(path)
    assert set(exported.sqnr) == {1, 2}
    assert min(exported.sqnr.values()) > 90
    for count in (1, 2, 7):
        x = pictures(count)
        torch.testing.assert_close(torch.from_numpy(run(path, x=x)[0]), module(x).detach(), atol=1e-5, rtol=0)


def test_names_are_those_of_the_module(net):
    _, path, exported = net
    model = ir.load(path)
    assert exported.inputs == ("x",)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert exported.outputs == tuple(value.name for value in model.graph.outputs)
    assert model.graph.inputs[0].shape[0].value == model.graph.outputs[0].shape[0].value == "batch"
    names = [node.name for node in model.graph]
    assert {"stem.0/Conv", "stem.2/Relu", "body/Conv", "Add", "Relu", "head/Gemm"} <= set(names)
    assert {"body.weight", "head.weight", "head.bias"} <= set(model.graph.initializers)


def test_nothing_of_this_machine_is_in_the_file(net):
    assert __file__.encode() not in net[1].read_bytes()


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)

    def forward(self, x, mask=None, *, scale=None, half=False):
        y = self.c(x) if mask is None else self.c(x) * mask
        y = y if scale is None else y * scale
        return {"y": y, "x": x * 0.5 if half else x}


@pytest.mark.parametrize(
    ("example", "inputs"),
    [
        ({"x": pictures(2), "scale": torch.rand(2, 1, 1, 1)}, ("x", "scale")),
        ({"mask": torch.rand(2, 1, 8, 8), "half": True, "x": pictures(2)}, ("x", "mask")),
        ((pictures(2), None), ("x",)),
    ],
)
def test_arguments_by_name_optional_ones_and_constants(tmp_path, example, inputs):
    module, path = Named().eval(), tmp_path / "m.onnx"
    exported = export(module, example, path)
    assert exported.inputs == inputs
    assert exported.outputs == ("y", "x_out")  # an input has the name x already
    assert exported.dynamic
    given = example if isinstance(example, dict) else {"x": example[0]}
    expected = module(**given)
    y, x = run(path, **{name: given[name] for name in inputs})
    torch.testing.assert_close(torch.from_numpy(y), expected["y"].detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.from_numpy(x), expected["x"])


class Containers(nn.Module):
    def forward(self, pair, more):
        return [pair[0] + pair[1], (more["a"] * 2, None)]


def test_containers_of_tensors(tmp_path):
    x = pictures(2)
    exported = export(Containers(), ([x, x + 1], {"a": x + 2}), tmp_path / "m.onnx", output_names=["s", "t"])
    assert len(exported.inputs) == 3
    feeds = dict(zip(exported.inputs, (x, x + 1, x + 2), strict=True))
    total, twice = run(tmp_path / "m.onnx", **feeds)
    assert (total == (x + (x + 1)).numpy()).all()
    assert (twice == ((x + 2) * 2).numpy()).all()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(8, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)) + torch.arange(x.shape[0]).reshape(-1, 1, 1, 1))


def test_a_module_that_is_called_twice(tmp_path):
    export(Twice(), pictures(2), tmp_path / "m.onnx", dynamic_batch=False)
    names = {node.name.rpartition("/")[0] for node in ir.load(tmp_path / "m.onnx").graph}
    assert "first" in names
    assert names <= {"", "first", "second"}


class Inside(nn.Module):
    def forward(self, x):
        relu = torch.relu(x)
        return relu * 2 + x


def test_an_output_may_be_called_like_a_tensor_inside(tmp_path):
    """ONNX Runtime refuses two tensors of one name."""
    path = tmp_path / "m.onnx"
    plain = torch.onnx.export(Inside(), (pictures(2),), dynamo=True, output_names=["relu"], verbose=False)
    names = [value.name for node in plain.model.graph for value in node.outputs]
    assert names.count("relu") == 2, "the exporter sees to it now: the renaming can go"
    exported = export(Inside(), pictures(2), path, output_names=["relu"])
    assert exported.outputs == ("relu",)
    x = pictures(3)
    assert (run(path, x=x)[0] == Inside()(x).numpy()).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"output_names": ["a", "b"]}, "2 output names for 1 outputs"),
        ({"input_names": []}, None),
        ({"output_names": ["x"]}, "'x' is also the name of an input"),
        ({"input_names": ["a", "b"]}, "2 input names for 1 inputs"),
    ],
)
def test_names_that_do_not_go(tmp_path, names, message):
    path = tmp_path / "m.onnx"
    if message is None:
        assert export(Inside(), pictures(2), path, **names).inputs == ("x",)
        return
    with pytest.raises(ConfigError, match=message):
        export(Inside(), pictures(2), path, **names)
    assert list(tmp_path.iterdir()) == []


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def test_where_the_first_axis_is_no_batch_sizes_are_fixed(tmp_path, caplog):
    exported = export(Fixed(), pictures(2), tmp_path / "m.onnx")
    assert not exported.dynamic
    assert set(exported.sqnr) == {2}
    assert "does not count samples" in caplog.text
    assert onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        found = self.conv(x)
        return found, found + 0.1 * torch.randn_like(found)


def test_outputs_with_noise_are_not_compared(tmp_path, caplog):
    exported = export(Noisy().eval(), pictures(2), tmp_path / "m.onnx", dynamic_batch=False)
    assert 90 < exported.sqnr[2] < 300  # of the other output
    assert "random numbers go in: add" in caplog.text
    assert "RandomNormalLike" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


def test_a_fixed_batch_if_asked_for(tmp_path, caplog):
    assert not export(Inside(), pictures(2), tmp_path / "m.onnx", dynamic_batch=False).dynamic
    assert [record for record in caplog.records if record.name.startswith("onnxq")] == []


def test_other_sizes_may_vary(tmp_path):
    path, shapes = tmp_path / "m.onnx", {"x": {0: "batch", 2: "height"}}
    shapes = {"x": {axis: torch.export.Dim(name) for axis, name in shapes["x"].items()}}
    exported = export(Inside(), pictures(2), path, dynamic_shapes=shapes)
    assert exported.dynamic
    dims = [
        dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in ir.load(path).graph.inputs[0].shape
    ]
    assert dims == ["batch", 3, "height", 8]
    assert run(path, x=torch.zeros(3, 3, 5, 8))[0].shape == (3, 3, 5, 8)


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Random(nn.Module):
    """The export makes its random number a constant."""

    def forward(self, x):
        return x + random.random()


class Functional(nn.Module):
    def forward(self, x):
        return nn.functional.batch_norm(x, torch.zeros(3), torch.ones(3), training=True)


class Stubborn(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Open(Net):
    """Takes whatever it is given, as wrappers do."""

    def forward(self, *pictures, **options):
        return super().forward(sum(pictures)) * options.get("scale", 1)


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (Open(), (pictures(2), pictures(2))),
        (nn.DataParallel(Open()), pictures(2)),
    ],
    ids=["args", "wrapped"],
)
def test_any_batch_size_for_open_arguments(tmp_path, caplog, module, example):
    assert export(settled(module), example, tmp_path / "m.onnx").dynamic
    assert [record for record in caplog.records if record.name.startswith("onnxq")] == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branches(), "Branches cannot be exported: Could not guard .* torch.where"),
        (Random(), "random numbers"),
        (nn.BatchNorm2d(3, track_running_stats=False), "training mode: track_running_stats is False"),
        (nn.Sequential(Stubborn(3)), "BatchNorm '0' is in training mode: it stays in training mode after"),
        (Functional(), "batch_norm is called with training=True"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_a_reason(tmp_path, capfd, module, message):
    with pytest.raises(ModelError, match=message) as caught:
        export(module, pictures(2), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (3, "example inputs of type int: expected a tensor, a tuple"),
        ((pictures(2), pictures(2)), "cannot be called with these inputs: too many positional"),
        ({"y": pictures(2)}, "missing a required argument: 'x'"),
        ((3,), "hold no tensor"),
    ],
)
def test_examples_that_do_not_fit(tmp_path, example, message):
    with pytest.raises(ConfigError, match=message):
        export(Inside(), example, tmp_path / "m.onnx")


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    with pytest.raises(ModelError, match="there is no directory"):
        export(Inside(), pictures(2), tmp_path / "no" / "m.onnx")


def test_every_part_keeps_its_mode(tmp_path):
    module = Net().train()
    module.head.eval()
    export(module, pictures(2), tmp_path / "m.onnx")
    assert module.training
    assert module.stem[1].training
    assert not module.head.training
    assert module.stem[1].num_batches_tracked == 0


def test_importing_the_package_is_enough():
    text = "import sys, onnxq; export = onnxq.torch.export; print('torch' in sys.modules, export.__module__)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "True onnxq.torch.exporting\n"


def test_the_public_names():
    assert {"PTQ", "export", "skip_quant"} <= set(dir(onnxq.torch))
    with pytest.raises(AttributeError, match=r"'onnxq\.torch' has no attribute 'exprot'"):
        _ = onnxq.torch.exprot


# --- the command ------------------------------------------------------------------------------------

FACTORY = """
import torch
def alone(): return torch.nn.Linear(4, 2)
def both(): return torch.nn.Linear(4, 2), torch.zeros(3, 4)
module = torch.nn.Linear(4, 2)
def nothing(): return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "made_here", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("made_here:both",),
        ("made_here.py:alone", "--shape", "1,4"),
        ("made_here:module", "--shape=2,4", "--fixed-batch"),
    ],
)
def test_the_command(folder, capsys, arguments):
    assert commands.main(["export", arguments[0], "o.onnx", *arguments[1:]]) == 0
    out = capsys.readouterr().out
    assert "o.onnx was exported" in out
    assert "SQNR against PyTorch" in out
    axis = onnx.load("o.onnx").graph.input[0].type.tensor_type.shape.dim[0]
    assert (axis.dim_value == 2) == ("--fixed-batch" in arguments)
    assert (axis.dim_param == "batch") == ("--fixed-batch" not in arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("made_here:alone",), "gives no example inputs: give the shape"),
        (("made_here:alone", "--shape", "1,x"), "expected whole numbers, like 1,3,224,224"),
        (("made_here:nothing",), "gives a int: expected a torch.nn.Module"),
        (("made_here:both_",), "there is no 'both_'; callables are: alone, both, module, nothing"),
        (("made_there:both",), "cannot import made_there"),
        (("made_there.py:both",), "made_there.py: no such file"),
        (("made_here",), "expected package.module:factory"),
    ],
)
def test_factories_that_do_not_go(folder, capsys, arguments, message):
    assert commands.main(["export", arguments[0], "o.onnx", *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "o.onnx").exists()


def test_a_missing_pytorch_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name == "torch" or name.startswith("onnxq.torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert commands.main(["export", "a:b", "o.onnx"]) == 2
    assert "onnxq.torch needs PyTorch: pip install 'onnxq[torch]'" in capsys.readouterr().err


class Moded(nn.Module):
    """What it computes depends on a text, on None, and on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, mode="plain", mask=None, *, scale=1.0):
        """Apply the layer, and what ``mode`` names."""
        y = torch.relu(self.fc(x)) if mode == "relu" else self.fc(x)
        return (y if mask is None else y * mask) * scale


@pytest.mark.parametrize(
    "example",
    [
        {"x": torch.ones(2, 4), "mode": "relu"},
        (torch.ones(2, 4), "relu", None),
        {"x": torch.ones(2, 4), "mode": "x", "mask": torch.ones(2, 4)},
        {"x": torch.ones(2, 4), "mask": None, "scale": 3.0},
    ],
    ids=["a text by name", "by position", "a text like an input's name", "None and a number"],
)
def test_arguments_of_other_types_are_constants(tmp_path, example):
    exported = onnxq.torch.export(Moded(), example, tmp_path / "m.onnx")
    assert exported.inputs == (
        ("x", "mask") if isinstance(example, dict) and example.get("mask") is not None else ("x",)
    )
    assert exported.dynamic


class Recurrent(nn.Module):
    """Tokens, or vectors, through a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, last: bool = False) -> None:
        super().__init__()
        self.words, self.rnn, self.last = nn.Embedding(10, 4), kind(4, 4, batch_first=True), last

    def forward(self, x):
        """Read a sequence."""
        read = self.rnn(x if x.is_floating_point() else self.words(x))[0]
        return read[:, -1] if self.last else read


class Flattened(nn.Module):
    """A matrix for all steps at once, which fixes their number."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(20, 2)

    def forward(self, x):
        """Read a sequence of five steps."""
        return self.fc(self.rnn(x)[0].flatten(1))


class Averaged(Recurrent):
    """Divides by the number of steps of the example, which tracing makes a constant."""

    def forward(self, x):
        """Read a sequence."""
        return super().forward(x).sum(1) / x.shape[1]


@pytest.mark.parametrize(
    ("module", "example", "shape"),
    [
        (lambda: Recurrent(nn.RNN), torch.ones(2, 5, 4), "2x5x4"),
        (Flattened, torch.ones(2, 5, 4), "2x5x4"),
        (Averaged, torch.ones(2, 5, 4), "2x5x4"),
        (lambda: nn.Embedding(10, 4), torch.ones(3, 7, dtype=torch.long), "3x7"),
        (Moded, torch.ones(2, 5, 4), None),
        (lambda: nn.Embedding(10, 4), torch.ones(3, dtype=torch.long), None),
    ],
    ids=[
        "an RNN",
        "a matrix for all steps",
        "a mean",
        "an embedding alone",
        "no sequence",
        "a token a sample",
    ],
)
def test_a_fixed_length_of_sequences_is_told(tmp_path, caplog, module, example, shape):
    export(module(), (example,), tmp_path / "m.onnx")
    told = [record.getMessage() for record in caplog.records if "sequences" in record.getMessage()]
    assert len(told) == (shape is not None)
    assert all(f"({shape})" in text and "dynamic_shapes" in text for text in told)
    assert "length" not in str(ir.load(tmp_path / "m.onnx").graph.inputs[0].shape)


@pytest.mark.parametrize("last", [False, True], ids=["all steps", "the last step"])
@pytest.mark.parametrize("example", [torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.long)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_length_is_free_for_lstm_and_gru(tmp_path, caplog, kind, example, last):
    module, path = Recurrent(kind, last).eval(), tmp_path / "m.onnx"
    export(module, (example,), path)
    assert "sequences" not in caplog.text
    model = ir.load(path)
    assert [str(dim) for dim in model.graph.inputs[0].shape][:2] == ["batch", "length"]
    assert ("length" in str(model.graph.outputs[0].shape)) is not last
    for count, length in ((1, 1), (3, 11)):
        more = torch.randn(count, length, 4) if example.ndim > 2 else torch.randint(10, (count, length))
        torch.testing.assert_close(torch.from_numpy(run(path, x=more)[0]), module(more).detach())


def test_a_free_length_that_was_asked_for_is_not_told(tmp_path, caplog):
    axes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    example = torch.ones(3, 7, dtype=torch.long)
    export(nn.Embedding(10, 4), (example,), tmp_path / "m.onnx", dynamic_shapes=axes)
    assert "sequences" not in caplog.text
