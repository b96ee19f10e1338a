"""A prepared module among what PyTorch does with modules: copies, checkpoints, wrappers, several processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from onnxq.core.config import QuantConfig  # noqa: E402
from onnxq.core.errors import ModelError  # noqa: E402
from onnxq.torch import convert_qat, freeze_batch_norms, freeze_ranges, prepare_qat  # noqa: E402  # noqa: E402

CONFIG = QuantConfig(verify="off", method="minmax", threads=1)
STEPS = 3


class Small(nn.Module):
    """A norm that is folded, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.head, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.last(torch.sigmoid(self.head(pooled)))


def batch(seed: int) -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * (1 + seed)


def prepared(learn_scales: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return prepare_qat(Small().eval(), batch(0), "tensorrt", CONFIG, learn_scales=learn_scales)


@pytest.fixture(scope="module", params=[False, True], ids=["followed", "learned"])
def original(request: pytest.FixtureRequest) -> nn.Module:
    return prepared(request.param)


@pytest.fixture
def module(original: nn.Module) -> nn.Module:
    return copy.deepcopy(original)


class Course:
    """A module in training."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.train()
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def steps(self, seeds: range) -> None:
        for seed in seeds:
            self.optimizer.zero_grad()
            (self.module(batch(seed)) - 1).square().mean().backward()
            self.optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("frozen", [False, True])
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    module: nn.Module, tmp_path: Path, frozen: bool
) -> None:
    fresh, course = copy.deepcopy(module), Course(module)
    course.steps(range(STEPS))
    freeze_ranges(module, frozen)
    freeze_batch_norms(module, frozen)
    torch.save([module.state_dict(), course.optimizer.state_dict()], tmp_path / "checkpoint.pt")
    course.steps(range(STEPS, 2 * STEPS))
    parts, optimizer = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = Course(fresh)
    fresh.load_state_dict(parts)
    again.optimizer.load_state_dict(optimizer)
    fresh.train()
    assert same_norms(fresh, parts)
    again.steps(range(STEPS, 2 * STEPS))
    assert same(module, fresh)
    assert same_norms(fresh, parts) == frozen


def same_norms(module: nn.Module, parts: dict[str, torch.Tensor]) -> bool:
    state = module.state_dict()
    return all(torch.equal(state[n], parts[n]) for n in parts if "running" in n or n.endswith(".high"))


def test_copies_are_trained_apart(module: nn.Module) -> None:
    twin = copy.deepcopy(module)
    assert same(module, twin)
    assert type(twin) is type(module)
    before = copy.deepcopy(module.state_dict())
    Course(twin).steps(range(1))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not same(module, twin)


def test_pickling_says_what_to_do_instead(module: nn.Module, tmp_path: Path) -> None:
    for save in (lambda: pickle.dumps(module), lambda: torch.save(module, tmp_path / "module.pt")):
        with pytest.raises(pickle.PicklingError, match="save its state_dict"):
            save()


def test_averaged_weights_are_written(module: nn.Module, tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    course = Course(module)
    for step in range(STEPS):
        course.steps(range(step, step + 1))
        averaged.update_parameters(module)
    assert not same(averaged.module, module)
    result = convert_qat(averaged, tmp_path / "out.onnx")
    assert result.sqnr >= 30


def test_a_compiled_module_is_trained_and_written(module: nn.Module, tmp_path: Path) -> None:
    plain = copy.deepcopy(module)
    compiled = torch.compile(module, backend="eager")
    Course(compiled).steps(range(STEPS))
    Course(plain).steps(range(STEPS))
    assert torch.allclose(module.head.weight, plain.head.weight, atol=1e-6)
    freeze_ranges(compiled)
    assert convert_qat(compiled, tmp_path / "out.onnx").sqnr >= 30


def test_with_mixed_precision_scales_keep_their_digits(module: nn.Module, tmp_path: Path) -> None:
    course = Course(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        course.steps(range(STEPS))
    assert convert_qat(module, tmp_path / "out.onnx").sqnr >= 30


def test_another_number_type_is_trained_but_not_written(module: nn.Module, tmp_path: Path) -> None:
    module = module.to(torch.bfloat16)
    assert module(batch(0).to(torch.bfloat16)).dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in module.fake_quantizers.buffers())
    with pytest.raises(ModelError, match=r"bfloat16, but was torch.float32 when .*\.float\(\)"):
        convert_qat(module, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    assert convert_qat(module.float(), tmp_path / "out.onnx").sqnr >= 30


def test_a_scale_that_the_last_step_made_negative_is_not_written(tmp_path: Path) -> None:
    module = prepared(learn_scales=True)
    scales = [part for name, part in module.named_parameters() if name.endswith(".scale")]
    with torch.no_grad():
        scales[-1].fill_(-1.0)
    result = convert_qat(module, tmp_path / "out.onnx")
    assert all((params.scale > 0).all() for params in result.plan.params.values())
    assert result.sqnr >= 30


# --- two processes -------------------------------------------------------------------------------------


def train_in_one_of_two(rank: int, folder: str) -> None:
    """What each process does: its own batches, and what it ends with in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(prepared(learn_scales=False))
        course = Course(wrapped)
        course.steps(range(rank * 10, rank * 10 + STEPS))
        trained = copy.deepcopy(wrapped.module.state_dict())
        freeze_ranges(wrapped)
        freeze_batch_norms(wrapped)
        course.steps(range(rank * 10, rank * 10 + 1))
        torch.save((trained, wrapped.module.state_dict()), f"{folder}/{rank}.pt")
        if rank == 0:
            assert convert_qat(wrapped, f"{folder}/out.onnx").sqnr >= 30
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, dict]]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(train_in_one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_have_the_same_parameters_and_ranges(ends) -> None:
    """Ranges are those of the first process, as with the statistics of batch normalizations."""
    (first, frozen), (second, also_frozen) = ends
    assert all(torch.equal(first[n], second[n]) for n in first if n.startswith(("head", "conv")))
    assert frozen.keys() == also_frozen.keys()
    assert all(torch.equal(frozen[name], also_frozen[name]) for name in frozen)
    ranges = [name for name in frozen if name.endswith(".high")]
    assert ranges
    assert all(torch.equal(frozen[name], first[name]) for name in ranges)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_functions_of_pytorch_that_do_nothing_here_are_warned_of(
    module: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    import torch.ao.quantization as tq

    copy.deepcopy(module).apply(lambda part: None).eval()(batch(1))
    assert caplog.records == []
    for function, remedy in (
        (tq.disable_fake_quant, "call the module that prepare_qat() was given"),
        (tq.disable_observer, "freeze_ranges(module)"),
    ):
        caplog.clear()
        module.apply(function)
        assert f"{function.__name__} has no effect" in caplog.text
        assert remedy in caplog.text
    caplog.clear()
    tq.convert(module.eval())
    assert "convert_qat(module, path)" in caplog.text
