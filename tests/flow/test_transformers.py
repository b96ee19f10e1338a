"""Transformers of every common kind, as PyTorch's exporter writes them: all modes, and what ONNX Runtime fuses."""

from collections import Counter

import numpy as np
import pytest

from calibrators.data.caches import find_caches
from calibrators.onnx_files import read_model
from calibrators.session import open_session
from onnxq.api import quantize_dynamic, quantize_static, quantize_weights
from onnxq.core.config import QuantConfig
from onnxq.graph.files import load
from onnxq.graph.nodes import all_nodes
from onnxq.graph.passes import simplify

pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny_transformers

pytestmark = pytest.mark.slow

FUSED = {
    *("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"),
    *("SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "RotaryEmbedding", "MultiHeadAttention"),
    *("GroupQueryAttention", "Attention", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Swish"),
}
"""Operators of ONNX Runtime that take the place of several."""

NORMS = {"bert": 5, "t5": 7, "llama": 5}
"""The number of normalizations of each."""

PARTS = {"bert": "bert", "t5": "t5_decoder", "llama": "llama_past"}
"""The part of each kind that is tried; scripts/bench_language tries all kinds."""


def exported(kind):
    """The file of the part of a kind that is tried."""
    return tiny_transformers.exported_once(kind, PARTS[kind])


def fused(model, folder):
    """What ONNX Runtime fuses a model to."""
    open_session(model, threads=1, save_fused=folder / "fused.onnx")
    kinds = [node.op_type for node in all_nodes(read_model(folder / "fused.onnx"))]
    return Counter(kind for kind in kinds if kind in FUSED)


def norms(counts):
    return sum(count for kind, count in counts.items() if kind.endswith("Normalization"))


@pytest.mark.parametrize("kind", PARTS)
def test_all_modes_and_targets_are_accurate_and_keep_fusions(kind, tmp_path):
    path, out = exported(kind), tmp_path / "out.onnx"
    static = {"mode": "static", "time_limit": 5.0, "autotune": "off"}
    before = fused(str(path), tmp_path)
    four_bits = quantize_weights(path, out, QuantConfig(mode="weight-only"))
    after, cleaned = fused(str(out), tmp_path), fused(simplify(load(path), 21), tmp_path)
    for counts in (after, cleaned):
        assert all(counts[name] >= count for name, count in before.items()), (before, counts)
        assert norms(counts) == NORMS[kind]
    for result, least in (
        (four_bits, 12),
        (quantize_dynamic(path, out, QuantConfig(mode="dynamic")), 25),
        *(
            (quantize_static(path, out, config=QuantConfig(target=target, **static)), 18)
            for target in ("onnxruntime", "openvino", "tensorrt", "qnn")
        ),
    ):
        assert result.plan.integer_nodes
        assert result.quality is not None
        assert result.quality.sqnr > least, (result.plan.target, result.quality.sqnr)


def test_prefill_and_decode_equal_one_pass(tmp_path):
    cached, out = exported("llama"), tmp_path / "int4.onnx"
    quantize_weights(cached, out, QuantConfig(mode="weight-only", verify="off"))
    model = load(out)
    given = load(cached).graph
    for old, new in zip(
        (*given.inputs, *given.outputs), (*model.graph.inputs, *model.graph.outputs), strict=True
    ):
        assert (old.name, old.dtype, old.shape) == (new.name, new.dtype, new.shape)
    caches = find_caches(model.graph)
    assert len(caches) == 2 * tiny_transformers.LAYERS
    session = open_session(out, threads=1)
    names = [value.name for value in model.graph.outputs]
    ids = np.random.default_rng(0).integers(0, tiny_transformers.WORDS, (1, 12))

    def step(part, past):
        length = next(iter(past.values())).shape[2] + part.shape[1]
        feeds = {"input_ids": part, "attention_mask": np.ones((1, length), np.int64), **past}
        return dict(zip(names, session.run(None, feeds), strict=True))

    empty = {c.past.name: np.zeros((1, c.past.shape[1], 0, c.past.shape[3]), np.float32) for c in caches}
    once = step(ids, empty)["logits"]
    first = step(ids[:, :7], empty)
    parts, past = [first["logits"]], first
    for position in range(7, 12):
        past = step(ids[:, position : position + 1], {c.past.name: past[c.present.name] for c in caches})
        parts.append(past["logits"])
    # Activations are rounded to 8 bits in groups inside MatMulNBits, the same ones in both ways.
    np.testing.assert_allclose(np.concatenate(parts, axis=1), once, atol=2e-3 * np.abs(once).max())
