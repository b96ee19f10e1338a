"""Word and character error rates of what is decoded."""

import json

import numpy as np
import pytest
from seeing import seen, value

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics import transcripts
from onnxq.verify.metrics.task_metric import packaged
from onnxq.verify.metrics.transcripts import Reader, error_rate

WORDS = {"character": "a\nb\nc"}


def steps(*places, count=5):
    """Scores in which these places are the largest, ``[1, T, V]``."""
    return np.eye(count, dtype=np.float32)[list(places)][None]


def reading(output, alphabet):
    return Reader("cer", alphabet).text(seen(output))


def test_blanks_and_repetitions_are_removed():
    # blank a a blank a space b, as PaddleOCR: blank in front, space at the end
    assert reading(steps(0, 1, 1, 0, 1, 4, 2), ("a", "b", "c")) == "aa b"
    assert reading(steps(0, 1, 1, 0, 1, 2, count=4), ("a", "b", "c")) == "aab"
    assert reading(np.swapaxes(steps(1, 0, 3), 0, 1), ("a", "b", "c")) == "ac"


def test_an_alphabet_with_a_blank_of_its_own():
    assert reading(steps(4, 0, 0, 1, 2, 1), ("<s>", "h", "|", "i", "<pad>")[:5]) == "<s>h h"
    assert reading(np.array([["some text"]], dtype=object), None) == "some text"


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cer:FILE"):
        reading(steps(1), None)
    with pytest.raises(ConfigError, match="alphabet has 2 characters, the output 5"):
        reading(steps(1), ("a", "b"))
    with pytest.raises(ConfigError, match=r"expected \[1, T, V\]"):
        reading(np.zeros((2, 3, 4), np.float32), ("a", "b", "c"))


def test_rates_are_those_of_jiwer():
    pytest.importorskip("jiwer")
    each = [seen(steps(1, 2, 3), label="abc"), seen(steps(1, 4, 2), label="a c")]
    assert value(error_rate("cer", "", WORDS), *each) == pytest.approx(1 / 6)
    assert value(error_rate("wer", "", WORDS), *each) == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match="all labels are empty"):
        value(error_rate("wer", "", WORDS), seen(steps(1), label=" "))


def test_the_alphabet_comes_from_a_file(tmp_path):
    pytest.importorskip("jiwer")
    text, ids = tmp_path / "a.txt", tmp_path / "a.json"
    text.write_text("x\ny\nz\n")
    ids.write_text(json.dumps({"<pad>": 0, "p": 2, "o": 1, "|": 3, "q": 4}))
    assert value(error_rate("cer", str(text), WORDS), seen(steps(1, 2), label="xy")) == 0
    assert value(error_rate("cer", str(ids), WORDS), seen(steps(1, 2, 0, 3, 4), label="op q")) == 0
    with pytest.raises(ConfigError, match="is no alphabet"):
        error_rate("cer", str(tmp_path / "none.txt"), WORDS)


def test_a_missing_package_is_told(monkeypatch):
    def fail(_):
        raise ImportError

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ConfigError, match=r"needs the package jiwer: pip install 'onnxq\[metrics\]'"):
        packaged("jiwer", "wer")
    assert transcripts.packaged is packaged
