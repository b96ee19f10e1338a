"""Models with weights in blocks, beside the float ones that they are made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from graphs import op_counts, parse

import onnxq
from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.graph.files import load

FORMATS = ("matmulnbits", "dequantize")


def feeds(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Random inputs; named dimensions are 4 if ``sizes`` does not have them."""
    rng, made = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes.get(str(d.value), 4) for d in value.shape]
        kind = value.dtype.numpy()
        numbers = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 3, shape)
        made[value.name] = np.asarray(numbers).astype(kind)
    return made


class Made:
    """A model before and after."""

    def __init__(
        self,
        folder: Path,
        text: str,
        given: Mapping[str, object] | None = None,
        sizes: Mapping[str, int] | None = None,
        external: bool = False,
        **options: object,
    ) -> None:
        """Write both; ``given`` goes to `parse`, ``sizes`` to `feeds`; external: weights in a file beside."""
        self.sizes = sizes or {}
        self.float, self.output = folder / "float.onnx", folder / "blocks.onnx"
        place = {"external_data": "float.bin", "size_threshold_bytes": 0} if external else {}
        ir.save(parse(text, **(given or {})), self.float, **place)
        self.result = onnxq.quantize_weights(
            self.float, self.output, QuantConfig(mode="weight-only", **options)
        )
        self.model = load(self.output)

    @property
    def counts(self) -> dict[str, int]:
        return op_counts(self.model)

    def error(self) -> float:
        """The noise-to-signal ratio of the first output, in amplitude."""
        given = feeds(self.model, self.sizes)
        before, after = (open_session(path).run(None, given)[0] for path in (self.float, self.output))
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        difference = np.linalg.norm(before.astype(np.float64) - after)
        return float(difference / np.linalg.norm(before.astype(np.float64)))
