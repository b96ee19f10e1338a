"""What this machine has: versions, features of its processor, runtimes; and which targets it can check."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import onnxruntime as ort

from calibrators.session import saturates
from onnxq.targets.onnxruntime import ONNXRUNTIME_ARM
from onnxq.targets.target import Target
from onnxq.verify import onnxruntime as onnxruntime_check
from onnxq.verify import openvino, tensorrt
from onnxq.verify.process import installed

PACKAGES = (
    *("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    *("pydantic", "pillow", "torch", "torchao", "openvino", "tensorrt", "tensorrt-rtx-cu12", "transformers"),
)
"""The packages whose versions matter to a result or to a report of a fault."""

_FEATURES: Mapping[str, tuple[str, ...]] = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni", "avx512vnni"),
    "AMX": ("amx_int8",),
    "NEON": ("neon", "asimd"),
    "dot products (Arm)": ("asimddp",),
    "i8mm (Arm)": ("i8mm",),
}
"""Feature -> its names in /proc/cpuinfo and in numpy, of which one is enough."""

_NOT_IN_NUMPY = ("AMX", "i8mm (Arm)")
"""Features that numpy does not look for."""

_CPUINFO = Path("/proc/cpuinfo")

_SECONDS = 20
"""The time that the driver of GPUs has to answer."""


@dataclass(frozen=True)
class Machine:
    """A machine and what is installed on it.

    Attributes:
        python: version of Python.
        system: operating system and architecture.
        packages: package -> version; None: it is not installed.
        processor: name of the processor.
        cores: number of logical cores.
        features: feature of the processor -> whether it has it; None: unknown on this system.
        saturating: whether ONNX Runtime's 8-bit kernels saturate here.
        providers: execution providers of ONNX Runtime.
        gpus: names of the NVIDIA GPUs.
        runtimes: runtime -> version; None: it is not installed.
    """

    python: str
    system: str
    packages: Mapping[str, str | None]
    processor: str
    cores: int
    features: Mapping[str, bool | None]
    saturating: bool
    providers: tuple[str, ...]
    gpus: tuple[str, ...]
    runtimes: Mapping[str, str | None]


@dataclass(frozen=True)
class Suitability:
    """What can be done here for a target.

    Attributes:
        target: its name.
        about: what it is.
        needs: what a check of a model with its runtime needs.
        checked: whether ``onnxq verify`` can ask its runtime here.
        here: how, or what is missing.
    """

    target: str
    about: str
    needs: str
    checked: bool
    here: str


def examine() -> Machine:
    """Look at this machine. Nothing large is imported but ONNX Runtime."""
    return Machine(
        platform.python_version(),
        f"{platform.system()} {platform.release()}, {platform.machine()}",
        {name: _version(name) for name in PACKAGES},
        _processor(),
        os.cpu_count() or 1,
        features(),
        saturates(),
        tuple(ort.get_available_providers()),
        _gpus(),
        {
            onnxruntime_check.RUNTIME: ort.__version__,
            openvino.RUNTIME: _version(openvino.MODULE) if installed(openvino.MODULE) else None,
            tensorrt.RUNTIME: _first_version(name for name in tensorrt.MODULES if installed(name)),
        },
    )


def suitability(target: Target, machine: Machine) -> Suitability:
    """Say what can be done for ``target`` on ``machine``."""
    runtime = next(iter(target.runtimes), None)
    if runtime is None:
        needs, here = "no runtime that onnxq can ask", "only its rules are checked; accuracy by ONNX Runtime"
    elif machine.runtimes.get(runtime) is None:
        needs, here = _NEEDS[runtime], f"not installed: pip install 'onnxq[{runtime}]'"
    else:
        needs, here = _NEEDS[runtime], _how(target, runtime, machine)
    checked = runtime is not None and machine.runtimes.get(runtime) is not None
    return Suitability(target.name, target.about, needs, checked, here)


_NEEDS: Mapping[str, str] = {
    onnxruntime_check.RUNTIME: "ONNX Runtime",
    openvino.RUNTIME: "OpenVINO",
    tensorrt.RUNTIME: "TensorRT-RTX or TensorRT to build an engine, and an NVIDIA GPU to run it",
}
"""Runtime -> what a check with it needs."""


def _how(target: Target, runtime: str, machine: Machine) -> str:
    if runtime == tensorrt.RUNTIME and not machine.gpus:
        capabilities = " and ".join(target.capabilities)
        return f"engines are built for {capabilities}, but not run: there is no NVIDIA GPU"
    if runtime != onnxruntime_check.RUNTIME:
        return "checked and run"
    arm = bool(machine.features["NEON"])
    if (target.name == ONNXRUNTIME_ARM.name) != arm:
        return f"checked and run, but on {'Arm' if arm else 'x86'}: take its times on the other processor"
    if machine.saturating and not target.weight.reduce_bits:
        return "checked and run, but its sums saturate here: onnxruntime-avx2 suits this processor"
    return "checked and run"


def features() -> dict[str, bool | None]:
    """Find which features the processor has: from Linux itself, elsewhere from numpy."""
    if _CPUINFO.is_file():
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
        words = {
            word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()
        }
        return {name: not words.isdisjoint(names) for name, names in _FEATURES.items()}
    found = {name.lower() for name, here in _numpy_features().items() if here}
    return {
        name: None if name in _NOT_IN_NUMPY or not found else not found.isdisjoint(names)
        for name, names in _FEATURES.items()
    }


def _numpy_features() -> Mapping[str, bool]:
    """Numpy's own look at the processor, which has another place in numpy 1; empty where there is none."""
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        try:
            found: Mapping[str, bool] = import_module(module).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return found
    return {}


def _processor() -> str:
    """The name of the processor, as Linux or Python tells it."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs that the driver's own program lists; none without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _first_version(modules: Iterable[str]) -> str | None:
    """The version of the first of ``modules``, by the distribution that brings it."""
    brought: Mapping[str, Sequence[str]] = metadata.packages_distributions()
    for module in modules:
        for distribution in brought.get(module, (module,)):
            return f"{module} {_version(distribution) or '(version unknown)'}"
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
