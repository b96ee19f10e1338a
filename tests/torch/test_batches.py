"""Batches in the forms that data loaders yield, for modules with any arguments."""

from collections import UserDict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import onnxq  # noqa: E402
import onnxq.torch  # noqa: E402
from onnxq.torch.batches import batches_for  # noqa: E402
from onnxq.torch.calls import example_call  # noqa: E402

CONFIG = onnxq.QuantConfig(verify="off", threads=1, correct=("none",))
A, B, Y = torch.arange(6.0).reshape(2, 3), -torch.arange(6.0).reshape(2, 3), torch.zeros(2, dtype=torch.long)


class Fields(NamedTuple):
    """A batch with named fields."""

    left: torch.Tensor
    right: torch.Tensor


class Pair(nn.Module):
    """Two tensors, one of which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 64)

    def forward(self, left, right=None, *, double=False):
        """Add both."""
        return self.net(left if right is None else left + right) * (2 if double else 1)


class Held(Pair):
    """The same, from one argument that holds both."""

    def forward(self, batch):
        """Unpack the batch."""
        return super().forward(batch["left"], batch["right"])


class Tupled(Pair):
    """The same, from a tuple."""

    def forward(self, pair):
        """Unpack the pair."""
        return super().forward(*pair)


NAMED = {"left": A, "right": B}
FORMS = {
    "tuple": (A, B),
    "list": [A, B],
    "with labels": (A, B, Y),
    "nested": ((A, B), Y),
    "nested lists": [[A, B], [Y, Y]],
    "by name": {**NAMED, "labels": Y},
    "by name in another order": {"labels": Y, "right": B, "left": A},
    "by name beside labels": (NAMED, Y),
    "like a tokenizer's": UserDict(NAMED),
    "arrays": (A.numpy(), B.numpy()),
    "named fields": Fields(A, B),
    "named fields beside labels": (Fields(A, B), Y),
}
"""All hold the same two inputs."""


def read(module, example, batch, names=("one", "two")):
    call = example_call(module, example)
    return next(iter(batches_for(module, call, list(names)[: len(call.tensors)], [batch])))


@pytest.mark.parametrize("batch", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("module", "example"),
    [
        (Pair, (A, B)),
        (Pair, {"right": B, "left": A}),
        (Pair, {"left": A, "right": B, "double": True}),
        (Held, (NAMED,)),
        (Tupled, ((A, B),)),
    ],
    ids=["positional", "by name", "a constant", "a dictionary", "a tuple"],
)
def test_every_form_for_every_call(module, example, batch):
    dictionary = isinstance(batch, dict | UserDict) or isinstance(batch[0], dict)
    if module is Tupled and dictionary:
        pytest.skip("a tuple has no names")
    if module is Held and not dictionary and not hasattr(batch, "left") and not hasattr(batch[0], "left"):
        pytest.skip("the dictionary needs names")
    found = read(module(), example, batch)
    assert np.array_equal(found["one"], A)
    assert np.array_equal(found["two"], B)


@pytest.mark.parametrize("batch", [A, (A,), (A, Y), [A, Y], ((A,), Y), {"left": A, "y": Y}, ({"left": A}, Y)])
@pytest.mark.parametrize("example", [A, (A,), (A, None), {"left": A, "double": True}], ids=str)
def test_one_input(batch, example):
    assert np.array_equal(read(Pair(), example, batch)["one"], A)


@pytest.mark.parametrize(
    "batch",
    [
        {"inputs": NAMED, "labels": Y},
        {"labels": Y, "inputs": (A, B)},
        {"data": {"views": [A, B]}, "labels": Y},
        [{"meta": 3}, (NAMED, Y)],
        ((A, (B,)), Y),
        (((A.numpy(),), [B.numpy()]), Y),
        ((A,), {"right": B}),
        ((), {"right": B, "left": A}),
    ],
    ids=str,
)
@pytest.mark.parametrize("example", [(A, B), {"left": A, "right": B}], ids=["positional", "by name"])
def test_at_any_depth(batch, example):
    found = read(Pair(), example, batch)
    assert np.array_equal(found["one"], A)
    assert np.array_equal(found["two"], B)


@pytest.mark.parametrize("batch", [((Y, (A,)), B), ((A, (Y,)), B), {"x": A, "y": B}, (("a", (A,)), B)])
def test_what_may_be_something_else_is_not_taken_for_an_input(batch):
    assert read(Pair(), (A, B), batch) is batch


def test_what_is_not_understood_is_passed_on():
    assert read(Pair(), (A, B), 3) == 3
    assert read(Pair(), (A, B), {"left": A}) == {"left": A}


@pytest.mark.parametrize("form", ["nested", "by name"])
def test_the_same_model_from_every_form(tmp_path, form):
    module = Pair().eval()
    wanted = [{"left": A + i, "right": B * i} for i in range(10)]
    shift = {id(A): lambda i: A + i, id(B): lambda i: B * i, id(Y): lambda i: Y}
    data = [
        torch.utils._pytree.tree_map(lambda leaf, i=i: shift[id(leaf)](i), FORMS[form]) for i in range(10)
    ]
    for name, given in (("plain", wanted), ("loader", data)):
        onnxq.quantize_static(module, tmp_path / name, given, CONFIG, example_inputs=(A, B))
    assert Path(tmp_path / "plain").read_bytes() == Path(tmp_path / "loader").read_bytes()
    ready = [onnxq.torch.prepare_qat(module, (A, B), config=CONFIG, data=given) for given in (wanted, data)]
    states = [{name: value.tolist() for name, value in one.state_dict().items()} for one in ready]
    assert states[0] == states[1]


def test_a_data_loader_is_read_as_often_as_needed(tmp_path):
    loader = DataLoader(TensorDataset(torch.randn(20, 3), torch.randn(20, 3), torch.zeros(20)), batch_size=4)
    result = onnxq.quantize_static(Pair().eval(), tmp_path / "o.onnx", loader, CONFIG, example_inputs=(A, B))
    assert result.statistics.samples + result.quality.samples == 20
    batches = batches_for(Pair(), example_call(Pair(), (A, B)), ["one", "two"], loader)
    assert [len(list(batches)) for _ in range(2)] == [5, 5]


def test_a_batch_without_an_input_is_refused(tmp_path):
    with pytest.raises(onnxq.CalibrationError, match="a tuple of 1, the model takes several inputs: 'left'"):
        onnxq.quantize_static(Pair().eval(), tmp_path / "o", [(A,)], CONFIG, example_inputs=(A, B))


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((A, B, 3), 3),
        (((A, B), 3), 3),
        ({"left": A, "right": B, "y": 3}, 3),
        (({"left": A, "right": B}, 3), 3),
        ((A, B), None),
        ((A, B, 3, 4), {2: 3, 3: 4}),
        ({"inputs": (A, B), "y": 3, "z": 4}, {"y": 3, "z": 4}),
    ],
)
def test_labels_lie_beside_the_inputs(batch, labels):
    batches = batches_for(Pair(), example_call(Pair(), (A, B)), ["one", "two"], [batch])
    (found,) = replace(batches, labelled=True)
    feeds, beside = (found, None) if labels is None else found
    assert list(feeds) == ["one", "two"]
    assert beside == labels
