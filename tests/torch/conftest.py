"""What all exports of the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def torchlib_is_read_once() -> Iterator[None]:
    """PyTorch compiles its library of translations from its source at every export: half of the time of a
    small one. The list is the same each time, and an export makes a registry of its own from it.
    """
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    library = registration.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "get_torchlib_ops", cache(library.get_torchlib_ops))
        yield
