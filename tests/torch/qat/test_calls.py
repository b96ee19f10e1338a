"""How a prepared module is called: as its forward declares, with the constants that it was traced with."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from onnxq.core.config import QuantConfig  # noqa: E402
from onnxq.core.errors import CalibrationError, ConfigError  # noqa: E402
from onnxq.torch import prepare_qat  # noqa: E402

CONFIG = QuantConfig(verify="off", method="minmax", threads=1)
A, B = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).unbind()


class Choice(nn.Module):
    """Two tensors, and options with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, a: Any, b: Any = None, deep: bool = True, *, names: tuple = ("one",)) -> Any:
        """Options decide what is computed."""
        y = self.one(a if b is None else a + b)
        return self.two(torch.relu(y)) * len(names) if deep else y


def prepared(example: Any) -> nn.Module:
    torch.manual_seed(0)
    return prepare_qat(Choice().eval(), example, config=CONFIG)


def test_one_call_in_many_forms() -> None:
    module = prepared((A, B))
    wanted = module(A, B)
    assert torch.equal(module(A, B), wanted)  # in eval mode, no range moves
    for args, kwargs in (
        ((A,), {"b": B}),
        ((), {"b": B, "a": A}),
        ((A, B, True), {}),
        ((A, B), {"deep": True, "names": ("one",)}),
    ):
        assert torch.equal(module(*args, **kwargs), wanted)
    assert module(A[:1], B[:1]).shape == (1, 6)


@pytest.mark.parametrize(
    ("example", "args", "kwargs", "message"),
    [
        ((A, B), (A, B, False), {}, "argument 'deep' of Choice is False, but was True in the example inputs"),
        ((A, B), (A, B), {"deep": False}, "argument 'deep' of Choice is False, but was True"),
        ((A, B, False), (A, B), {}, "argument 'deep' of Choice is True, but was False"),
        ((A, B), (A,), {}, "argument 'b' of Choice is None, but was tensor"),
        (A, (A, B), {}, "argument 'b' of Choice is tensor.*, but was None"),
        (A, (A,), {"names": ("one", "two")}, "argument 'names' of Choice is .*'two'.*, but was .'one',."),
        ({"a": A, "names": ("two",)}, (A,), {}, "argument 'names' of Choice is .'one',., but was .'two',."),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_other_constants_are_refused(
    example: Any, args: tuple, kwargs: dict, message: str, training: bool
) -> None:
    module = prepared(example).train(training)
    with pytest.raises(CalibrationError, match=message):
        module(*args, **kwargs)


def test_calls_that_forward_does_not_take() -> None:
    module = prepared((A, B))
    with pytest.raises(ConfigError, match=r"Choice.forward\(a: .* cannot be called with these inputs"):
        module(A, B, True, 3)
    with pytest.raises(ConfigError, match="missing a required argument: 'a'"):
        module(b=B)


def test_a_compiled_module_refuses_too() -> None:
    compiled = torch.compile(prepared((A, B)), backend="eager")
    assert torch.equal(compiled(A, b=B), compiled(A, B))
    with pytest.raises(CalibrationError, match="argument 'deep' of Choice is False"):
        compiled(A, B, False)


class Counted(nn.Module):
    """Takes four samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 6)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """Lay out four samples."""
        return self.net(a.reshape(4, 6))


def test_another_batch_size_is_refused_where_the_trace_has_one(caplog: pytest.LogCaptureFixture) -> None:
    module = prepare_qat(Counted().eval(), A, config=CONFIG)
    assert "with batches of 4 only" in caplog.text
    assert module(A).shape == (4, 6)
    with pytest.raises(CalibrationError, match=r"traced for batches of 4 only.* got one of 3"):
        module(A[:3])
