"""The models that the other tests stand on are what they are said to be."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import evaldata
import zoo


def operators(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_three_exports_are_different_graphs_of_one_function(lite0_models: dict[str, Path]) -> None:
    counts = {variant: operators(path) for variant, path in lite0_models.items()}
    assert {count["Conv"] for count in counts.values()} == {49}
    assert counts["dynamo"]["BatchNormalization"] == 0
    assert (
        counts["dynamo-unoptimized"]["BatchNormalization"]
        == counts["torchscript"]["BatchNormalization"]
        == 49
    )
    assert counts["torchscript"]["Pad"] == 17
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    first, *others = (
        ort.InferenceSession(path).run(None, {"input": image})[0] for path in lite0_models.values()
    )
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-4)


def test_the_sentence_encoder_does_not_see_padding(minilm: Path) -> None:
    session = ort.InferenceSession(minilm)
    sentences = ["A cat sleeps.", "Two men are playing chess in a park, watched by many others."]
    together = session.run(None, next(evaldata.tokenized(sentences, batch_size=2)))[0]
    alone = np.concatenate([session.run(None, feeds)[0] for feeds in evaldata.tokenized(sentences)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    assert abs(float(alone[0] @ alone[1])) < 0.5


def test_light_models_exist(light_model: Path) -> None:
    assert len(onnx.load(light_model).graph.node) > 10


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_ZOO", str(tmp_path))

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError

    with pytest.raises(OSError):
        zoo.cached("model.onnx", fails)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    made = zoo.cached("model.onnx", lambda path: path.write_bytes(b"whole"))
    assert zoo.cached("model.onnx", fails) == made
    assert made.read_bytes() == b"whole"
