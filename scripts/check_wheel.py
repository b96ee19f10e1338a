"""Build the package as it is published, check it, and test the wheel in empty environments without PyTorch.

One environment for each Python that is asked for, with the lowest and with the newest versions that setup.cfg
allows and that have wheels for that Python. uv makes them; a Python that it does not find is told and left
out. Exits with 1 if something fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.13")
RESOLUTIONS = ("lowest-direct", "highest")

PROGRAM = """
import importlib.util, sys
import numpy as np, onnx
from onnx import helper, numpy_helper as nh, TensorProto as T
assert importlib.util.find_spec("torch") is None, "this environment has PyTorch"
rng = np.random.default_rng(0)
shapes = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 256)}
arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
nodes = [
    helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    helper.make_node("Flatten", ["p"], ["f"]),
    helper.make_node("MatMul", ["f", "v"], ["y"]),
]
graph = helper.make_graph(
    nodes, "g", [helper.make_tensor_value_info("x", T.FLOAT, ["n", 3, 8, 8])],
    [helper.make_tensor_value_info("y", T.FLOAT, ["n", 256])],
    [nh.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
np.savez("d.npz", x=rng.standard_normal((20, 3, 8, 8)).astype(np.float32))
from onnxq.cli import main
commands = [
    "--version", "doctor", "inspect m.onnx", "completion bash",
    "quantize m.onnx o.onnx --data d.npz --report r.html --table t.cache",
    "quantize m.onnx t.onnx --data d.npz --target tensorrt",
    "quantize m.onnx w.onnx --mode dynamic",
    "quantize m.onnx i.onnx --mode weight-only",
    "calibrate m.onnx s.npz --data d.npz", "quantize m.onnx p.onnx --from-table s.npz --method percentile",
    "compare m.onnx o.onnx --data d.npz", "verify o.onnx --target onnxruntime",
    "sensitivity m.onnx --data d.npz", "convert m.onnx h.onnx --data d.npz", "requantize o.onnx q.onnx",
]
failed = [text for text in commands if main(text.split())]
sys.exit(f"failed: {failed}" if failed else 0)
"""
"""What a user does without PyTorch, in an environment with nothing else."""


def main() -> int:
    """Build, check and test; return 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build-only", action="store_true", help="make no environments")
    parser.add_argument("--python", action="append", metavar="VERSION", help=f"default: {' '.join(PYTHONS)}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "dist"
        if not build(built):
            return 1
        wheel = next(built.glob("*.whl"))
        if given.build_only:
            return 0
        results = [
            tested(wheel, python, resolution, Path(folder))
            for python in given.python or PYTHONS
            for resolution in RESOLUTIONS
        ]
    return 0 if all(results) else 1


def build(folder: Path) -> bool:
    """Build both archives into ``folder``, and check their metadata and contents."""
    python = [sys.executable, "-m"]
    if not done([*python, "build", "--quiet", "--outdir", folder, ROOT]):
        return False
    archives, wheels = sorted(folder.iterdir()), sorted(folder.glob("*.whl"))
    checked = done([*python, "twine", "check", "--strict", *archives])
    return done([*python, "check_wheel_contents", "--config", ROOT / "pyproject.toml", *wheels]) and checked


def tested(wheel: Path, python: str, resolution: str, folder: Path) -> bool:
    """Install the wheel in an environment of its own and use it there; a missing Python is no failure."""
    name = f"Python {python}, {resolution}"
    home = folder / f"{python}-{resolution}"
    uv = [sys.executable, "-m", "uv", "--quiet"]
    if not done([*uv, "venv", "--python", python, "--no-python-downloads", home]):
        print(f"{name}: NOT TESTED, uv finds no Python {python}", flush=True)
        return True
    inside = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    listed = folder / f"{python}-{resolution}.txt"
    wanted = folder / "wanted.in"
    wanted.write_text("\n".join(requirements(wheel)), "utf-8")
    source = ["--resolution", resolution, "--python", str(inside), "--only-binary", ":all:", str(wanted)]
    resolved = done([*uv, "pip", "compile", *source, "-o", listed])
    passed = (
        resolved
        and done([*uv, "pip", "install", "--python", inside, "-r", listed])
        and done([*uv, "pip", "install", "--python", inside, "--no-deps", wheel])
        and done([inside, "-c", PROGRAM], home)
    )
    print(f"{name}: {'passed' if passed else 'FAILED'}", flush=True)
    return passed


def requirements(wheel: Path) -> list[str]:
    """Read what the wheel needs without extras: as requirements of our own, so that "lowest" means these."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needed = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    return [text for text in needed if "extra ==" not in text]


def done(command: Sequence[str | os.PathLike[str]], folder: Path = ROOT) -> bool:
    """Run a command in ``folder`` without this checkout on its path; print what it says if it fails."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run(
        command, cwd=folder, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        print(
            f"{' '.join(map(str, command))[:200]}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}",
            file=sys.stderr,
        )
    return ran.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
