"""``wer`` and ``cer``: the share of words or characters that are wrong in what a recognizer reads or hears.

Labels are texts. Outputs are texts, or scores of characters at each step, ``[1, T, V]`` or ``[T, 1,
V]``, which are decoded greedily, as connectionist temporal classification says: the largest score of
each step, without repetitions and blanks (Graves et al., 2006). The alphabet comes from a file,
``wer:FILE``, one character a line or a JSON dictionary of ids, or from the model's metadata
``character``. An alphabet without a blank has it in front, and may have a blank space at its end, as in
PaddleOCR. The rates are those of jiwer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Seen, TaskMetric, packaged, scores_of

BLANKS = ("<blank>", "<blk>", "<pad>", "[PAD]", "blank", "<ctc>", "ε")
"""What alphabets call the blank."""

METADATA = "character"
"""The key of the metadata with the alphabet, as RapidOCR writes it."""


def error_rate(name: str, file: str, metadata: Mapping[str, str]) -> TaskMetric:
    """Return ``wer`` or ``cer``.

    Args:
        name: one of the two.
        file: the file with the alphabet; empty: the metadata may hold it.
        metadata: the metadata of the model.

    Raises:
        ConfigError: the file cannot be read, or jiwer is not installed.
    """
    packaged("jiwer", name)
    reader = Reader(name, _alphabet(file, metadata, name))

    def look(seen: Seen) -> tuple[str, str]:
        return str(seen.label), reader.text(seen)

    return TaskMetric(name, look, partial(_rate, name), is_share=True, label_of=reader.text)


@dataclass(frozen=True)
class Reader:
    """Turns the output of a recognizer into text.

    Attributes:
        metric: the name of the metric, for messages.
        alphabet: the characters; None if unknown.
    """

    metric: str
    alphabet: tuple[str, ...] | None

    def text(self, seen: Seen) -> str:
        """Return the text of one sample.

        Raises:
            ConfigError: the output is not text, and no alphabet fits it.
        """
        for array in seen.outputs.values():
            if isinstance(array, np.ndarray) and array.dtype.kind in "OU":
                return " ".join(map(str, array.reshape(-1)))
        scores = scores_of(seen, self.metric)
        steps = scores.reshape(-1, scores.shape[-1])
        if scores.ndim > 3 or steps.size != scores.size or (scores.ndim == 3 and 1 not in scores.shape[:2]):
            raise ConfigError(
                f"the metric {self.metric}: an output has the shape {list(scores.shape)}, expected [1, T, V]"
            )
        signs, blank = self._signs(steps.shape[1])
        best = steps.argmax(1)
        kept = best[np.append(True, best[1:] != best[:-1])]
        return "".join(signs[one] for one in kept if one != blank).replace("|", " ").strip()

    def _signs(self, count: int) -> tuple[Sequence[str], int]:
        """Return the character of each score, and the place of the blank."""
        if self.alphabet is None:
            raise ConfigError(
                f"the metric {self.metric} needs the alphabet of the model, whose metadata holds none: give "
                f"--metric {self.metric}:FILE with one character a line"
            )
        signs = self.alphabet
        known = next((signs.index(name) for name in BLANKS if name in signs), None)
        if known is not None and len(signs) == count:
            return signs, known
        if len(signs) == count:
            return signs, 0
        if len(signs) in (count - 1, count - 2):
            return ("", *signs, " "), 0
        raise ConfigError(
            f"the metric {self.metric}: the alphabet has {len(signs)} characters, the output {count} scores "
            "at each step: expected as many, or one or two less (blank, space)"
        )


def _alphabet(file: str, metadata: Mapping[str, str], metric: str) -> tuple[str, ...] | None:
    if not file:
        text = metadata.get(METADATA)
        return None if text is None else tuple(text.strip("\n").split("\n"))
    try:
        text = Path(file).read_text("utf-8")
        if file.endswith(".json"):
            ids: dict[str, int] = json.loads(text)
            return tuple(sorted(ids, key=lambda sign: ids[sign]))
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"the metric {metric}: {file} is no alphabet ({error})") from error
    return tuple(text.strip("\n").split("\n"))


def _rate(name: str, pairs: Sequence[tuple[str, str]]) -> float:
    jiwer: Any = packaged("jiwer", name)
    told = [(label, text) for label, text in pairs if label.strip()]
    if not told:
        raise ConfigError(f"the metric {name}: all labels are empty")
    found: float = getattr(jiwer, name)(*map(list, zip(*told, strict=True)))
    return found
