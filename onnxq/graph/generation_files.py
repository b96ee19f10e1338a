"""Files that lie beside a language model, without which onnxruntime-genai does not run it.

It reads a folder: ``genai_config.json`` names the file of the model, and what its inputs and outputs are
called. Tokenizers lie beside it. Quantization changes none of these names.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from calibrators.atomic import staged

logger = logging.getLogger(__name__)

CONFIG = "genai_config.json"

TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja"),
    *("processor_config.json", "preprocessor_config.json"),
)
"""The files that tokenizers and processors are read from."""


def copy_generation_files(model: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Copy what onnxruntime-genai needs from the folder of a model to that of the written one.

    Nothing happens where there is no ``genai_config.json``, or both are in one folder, which can have one
    configuration only. Files that are there already stay.

    Args:
        model: the given model.
        output: the written model.
    """
    source, goal = Path(model).resolve(), Path(output).resolve()
    if source.parent == goal.parent or not (source.parent / CONFIG).is_file():
        return
    try:
        config = json.loads((source.parent / CONFIG).read_text("utf-8"))
    except ValueError as error:
        logger.warning("%s is not copied: it is no JSON (%s)", source.parent / CONFIG, error)
        return
    renamed = _renamed(config, source.name, goal.name)
    if renamed == config and source.name != goal.name:
        logger.warning("%s is not copied: it does not name %s", source.parent / CONFIG, source.name)
        return
    names = [name for name in TOKENIZERS if (source.parent / name).is_file()]
    wanted = [goal.parent / name for name in (CONFIG, *names)]
    for path in wanted:
        if path.exists():
            logger.info("%s is there already and stays", path)
    missing = [path for path in wanted if not path.exists()]
    with staged(missing) as beside:
        for path in missing:
            if path.name == CONFIG:
                beside[path].write_text(json.dumps(renamed, indent=2) + "\n", "utf-8")
            else:
                shutil.copyfile(source.parent / path.name, beside[path])


def _renamed(config: Any, old: str, new: str) -> Any:
    """Replace the file name ``old`` wherever the configuration gives it as a ``filename``."""
    if isinstance(config, list):
        return [_renamed(each, old, new) for each in config]
    if not isinstance(config, dict):
        return config
    return {
        key: new if key == "filename" and value == old else _renamed(value, old, new)
        for key, value in config.items()
    }
