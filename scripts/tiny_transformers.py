"""Small transformers with random weights, as PyTorch exports them: one of each kind that people deploy.

Decoders come twice: as one pass, and with a cache of keys and values.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import zoo

WIDTH, LAYERS, WORDS, HEADS, HEAD = 64, 2, 256, 4, 16
"""Channels, layers, size of the vocabulary, heads, and channels of a head."""

FREE = torch.export.Dim.DYNAMIC


@dataclass(frozen=True)
class Part:
    """A part of a model that is exported as a file.

    Attributes:
        call: called with the model and the inputs.
        inputs: names of the inputs -> examples; a list of tensors stands for the inputs `_cache_names` gives.
        axes: free axes of each input.
        outputs: names of the outputs.
    """

    call: Callable[..., Any]
    inputs: Mapping[str, Any]
    axes: Sequence[Any]
    outputs: Sequence[str]


class _Called(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *args: Any) -> Any:
        return self.call(self.model, *args)


_BOTH = {0: FREE, 1: FREE}
_BERT: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
    "vocab_size": WORDS,
    "max_position_embeddings": 128,
}
_DECODER: Mapping[str, Any] = {
    **_BERT,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": WORDS, "n_positions": 128},
    ),
    "llama": ("LlamaForCausalLM", _DECODER),
    "qwen2": ("Qwen2ForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, "head_dim": HEAD, "tie_word_embeddings": True}),
    "phi": ("PhiForCausalLM", _DECODER),
    "phi3": ("Phi3ForCausalLM", _DECODER),
    "gemma": ("GemmaForCausalLM", {**_DECODER, "head_dim": HEAD}),
    "gemma2": ("Gemma2ForCausalLM", {**_DECODER, "head_dim": HEAD, "final_logit_softcapping": 3.0}),
}
"""Name -> class and options of its configuration."""

OTHERS = ("bert", "t5", "whisper")

KINDS = (*OTHERS, *DECODERS)


def export(kind: str, folder: Path, names: Collection[str] = ()) -> list[Path]:
    """Export one kind of model; return its files.

    Args:
        kind: one of `KINDS`.
        folder: where they are written.
        names: the parts to export; all if empty.
    """
    torch.manual_seed(0)
    model, parts = _MADE[kind]() if kind in _MADE else _decoder(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # biases of zero would be folded away
                parameter.normal_(std=0.02)
    chosen = {name: part for name, part in parts.items() if not names or name in names}
    return [_exported(model.eval(), part, folder / f"{name}.onnx") for name, part in chosen.items()]


def exported_once(kind: str, name: str) -> Path:
    """Return the file of one part, which is exported into the cache of `zoo` if it is not there."""
    recipe = Path(__file__).read_bytes() + transformers.__version__.encode()

    def make(path: Path) -> None:
        (made,) = export(kind, path.parent, [name])
        made.replace(path)

    return zoo.cached(f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}.onnx", make)


def _exported(model: torch.nn.Module, part: Part, path: Path) -> Path:
    names = [each for name, value in part.inputs.items() for each in _names(name, value)]
    levels = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Called(model, part.call),
                tuple(part.inputs.values()),
                path,
                input_names=names,
                output_names=list(part.outputs),
                dynamo=True,
                dynamic_shapes=(tuple(part.axes),),
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(levels)
    return path


def _names(name: str, value: Any) -> list[str]:
    return _cache_names(name) if isinstance(value, list) else [name]


def _cache_names(prefix: str) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


def _ids(length: int = 9) -> torch.Tensor:
    return torch.randint(0, WORDS, (2, length))


def _decoder(kind: str) -> tuple[torch.nn.Module, dict[str, Part]]:
    name, options = DECODERS[kind]
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**options))
    heads = options.get("num_key_value_heads", HEADS)
    past = [torch.randn(2, heads, 7, HEAD) for _ in range(2 * LAYERS)]
    cached = {
        "input_ids": _ids(5),
        "attention_mask": torch.ones(2, 12, dtype=torch.int64),
        "past_key_values": past,
    }
    axes = (_BOTH, _BOTH, [{0: FREE, 2: FREE}] * len(past))
    return model, {
        kind: Part(
            lambda m, ids: m(input_ids=ids, use_cache=False).logits,
            {"input_ids": _ids()},
            (_BOTH,),
            ["logits"],
        ),
        f"{kind}_past": Part(_with_cache, cached, axes, ["logits", *_cache_names("present")]),
    }


def _with_cache(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, past: list[torch.Tensor]
) -> list[torch.Tensor]:
    cache = transformers.DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
    result = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    return [
        result.logits,
        *(each for layer in result.past_key_values.layers for each in (layer.keys, layer.values)),
    ]


def _config(name: str, **options: Any) -> Any:
    return getattr(transformers, name)(**options)


def _bert() -> tuple[torch.nn.Module, dict[str, Part]]:
    model: Any = transformers.BertModel(_config("BertConfig", **_BERT))
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}

    def call(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        return m(input_ids=ids, attention_mask=mask).last_hidden_state

    return model, {"bert": Part(call, inputs, (_BOTH, _BOTH), ["hidden"])}


def _t5() -> tuple[torch.nn.Module, dict[str, Part]]:
    config = _config(
        "T5Config",
        d_model=WIDTH,
        d_kv=HEAD,
        num_heads=HEADS,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        vocab_size=WORDS,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(config)
    inputs = {"input_ids": _ids(), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}

    def encode(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        return m.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def decode(m: Any, ids: torch.Tensor, hidden: torch.Tensor) -> Any:
        return m.lm_head(
            m.decoder(input_ids=ids, encoder_hidden_states=hidden, use_cache=False).last_hidden_state
        )

    return model, {
        "t5_encoder": Part(encode, inputs, (_BOTH, _BOTH), ["hidden"]),
        "t5_decoder": Part(
            decode, {"input_ids": _ids(5), "hidden": torch.randn(2, 9, WIDTH)}, (_BOTH, _BOTH), ["logits"]
        ),
    }


def _whisper() -> tuple[torch.nn.Module, dict[str, Part]]:
    config = _config(
        "WhisperConfig",
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        vocab_size=WORDS,
        num_mel_bins=20,
        max_source_positions=50,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = transformers.WhisperForConditionalGeneration(config)

    def decode(m: Any, ids: torch.Tensor, hidden: torch.Tensor) -> Any:
        decoded = m.model.decoder(input_ids=ids, encoder_hidden_states=hidden, use_cache=False)
        return m.proj_out(decoded.last_hidden_state)

    inputs = {"input_ids": _ids(5), "hidden": torch.randn(2, 50, WIDTH)}
    return model, {
        "whisper_encoder": Part(
            lambda m, sound: m.model.encoder(sound).last_hidden_state,
            {"input_features": torch.randn(2, 20, 100)},
            ({0: FREE},),
            ["hidden"],
        ),
        "whisper_decoder": Part(decode, inputs, (_BOTH, {0: FREE}), ["logits"]),
    }


_MADE: Mapping[str, Callable[[], tuple[torch.nn.Module, dict[str, Part]]]] = {
    "bert": _bert,
    "t5": _t5,
    "whisper": _whisper,
}
