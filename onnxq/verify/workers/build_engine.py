"""Build a TensorRT engine of a model, with or without a GPU.

Arguments: RESULT MODEL INPUTS.npz OUTPUTS.npz CAPABILITY [RUNS]. Without a GPU, the engine is for GPUs of
this compute capability, such as SM86, if this TensorRT can build for them; the builder then times no kernels.

Writes ``{"version", "capability", "errors", "built", "layers": [{"type", "kernel", "reads", "nodes"}],
"ran", "why_not"}`` to RESULT. ``capability`` is empty if the engine is for the GPU that is there. If there is
one, the engine runs on the inputs, and its outputs are written to OUTPUTS.npz. RUNS more runs are timed
there, and so is each layer: ``{"milliseconds": [], "profile": {layer: milliseconds}}``.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import tensorrt_rtx as trt
except ImportError:
    import tensorrt as trt

PROFILED_RUNS = 20
"""The largest number of runs of which each layer is timed."""

_NODES = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPE = re.compile(r"LayerType: (\w+)")
_TACTIC = re.compile(r"TacticName: (\w+)")
_DATATYPE = re.compile(r"Datatype: (\w+)")


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps the messages of TensorRT."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep a message; TensorRT calls this."""
        self.lines.append(message)
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


def build(
    model: str, inputs: Mapping[str, Any], outputs: str, capability: str, runs: int = 0
) -> dict[str, Any]:
    """Parse the model, build an engine, list its layers, and run it if there is a GPU.

    Args:
        model: path of the ONNX file.
        inputs: arrays by input name.
        outputs: path of the file to write the outputs to.
        capability: the GPU type to build for without a GPU.
        runs: the number of runs to time on a GPU.

    Returns:
        The content of RESULT.
    """
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed())
    parser = trt.OnnxParser(network, log)
    answer: dict[str, Any] = {"version": trt.__version__, "errors": [], "built": False, "layers": []}
    devices = gpus()
    capability = "" if devices or not hasattr(trt, "ComputeCapability") else capability
    answer |= {"ran": False, "why_not": "the engine was not built", "capability": capability}
    if not parser.parse_from_file(model):
        return answer | {"errors": [_refusal(parser.get_error(i)) for i in range(parser.num_errors)]}
    log.errors.clear()  # drops complaints about a missing driver
    engine = builder.build_serialized_network(network, _config(builder, network, inputs, capability))
    if engine is None:
        return answer | {"errors": [{"node": "", "text": text} for text in log.errors]}
    answer |= {"built": True, "layers": list(layers(log.lines)), "why_not": "there is no GPU"}
    if devices:
        loaded = Loaded(trt.Runtime(log).deserialize_cuda_engine(engine), inputs)
        np.savez(outputs, **loaded.run())
        answer |= {"ran": True, "why_not": "", **(loaded.timed(runs) if runs else {})}
    return answer


def _strongly_typed() -> int:
    """The flag with which types follow from Q and DQ, not from speed, if this version has it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusal(error: Any) -> dict[str, str]:
    return {"node": str(error.node_name()), "text": str(error.desc())}


def _config(builder: Any, network: Any, inputs: Mapping[str, Any], capability: str) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if capability and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile, dynamic = builder.create_optimization_profile(), False
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        if any(size < 0 for size in tensor.shape):
            dynamic = True
            shape = inputs[tensor.name].shape
            profile.set_shape(tensor.name, shape, shape, shape)
    if dynamic:
        config.add_optimization_profile(profile)
    return config


def layers(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the engine's layers: type, kernel, types of the numbers that they read, and ONNX nodes."""
    for line in (line for text in lines if "LayerType: " in text for line in text.splitlines()):
        kind = _TYPE.search(line)
        if kind is None:
            continue
        read = _DATATYPE.findall(line.split("Outputs: [")[0].split("Constants: [")[0])
        kernel = _TACTIC.search(line)
        name = "" if kernel is None else kernel[1]
        yield {"type": kind[1], "kernel": name, "reads": sorted(set(read)), "nodes": _NODES.findall(line)}


# --- With a GPU -------------------------------------------------------------------------------


def gpus() -> int:
    """Count the GPUs; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


class Gpu:
    """The memory of the first GPU, accessed through its driver."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            RuntimeError: the driver returns an error code.
        """
        if code := getattr(self.driver, name)(*arguments):
            raise RuntimeError(f"{name} failed: CUDA error {code}")

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return their address."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def put(self, address: int, array: Any) -> None:
        """Copy ``array`` to ``address``."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), array.ctypes.data_as(ctypes.c_void_p), size)

    def get(self, address: int, array: Any) -> None:
        """Fill ``array`` from ``address``."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyDtoH_v2", array.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(address), size)


class Profile(trt.IProfiler):  # type: ignore[misc]
    """Keeps the milliseconds of each layer, in the order of the engine."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.layers: dict[str, list[float]] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Keep a time; TensorRT calls this."""
        self.layers.setdefault(layer_name, []).append(ms)


class Loaded:
    """An engine on the first GPU, with its inputs in place."""

    def __init__(self, engine: Any, inputs: Mapping[str, Any]) -> None:
        self.gpu, self.context = Gpu(), engine.create_execution_context()
        self.engine = engine  # the context does not keep it alive
        self.outputs: dict[str, tuple[int, Any]] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        fed = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in fed:
            array = np.ascontiguousarray(inputs[name], trt.nptype(engine.get_tensor_dtype(name)))
            self.context.set_input_shape(name, array.shape)
            self.gpu.put(self._seat(name, array), array)
        for name in (name for name in names if name not in fed):  # their shapes follow from the inputs
            dtype = trt.nptype(engine.get_tensor_dtype(name))
            array = np.empty(tuple(self.context.get_tensor_shape(name)), dtype)
            self.outputs[name] = (self._seat(name, array), array)

    def _seat(self, name: str, array: Any) -> int:
        address = self.gpu.allocate(array.nbytes)
        self.context.set_tensor_address(name, address)
        return address

    def run(self) -> dict[str, Any]:
        """Run once and return the outputs by name."""
        self._execute()
        for address, array in self.outputs.values():
            self.gpu.get(address, array)
        return {name: array for name, (_, array) in self.outputs.items()}

    def _execute(self) -> None:
        if not self.context.execute_async_v3(0):
            raise RuntimeError("the engine did not run")
        self.gpu.call("cuCtxSynchronize")

    def timed(self, runs: int) -> dict[str, Any]:
        """Return the milliseconds of each of some runs, and the median of each layer by name."""
        milliseconds = []
        for _ in range(runs):
            start = time.perf_counter()
            self._execute()
            milliseconds.append(1e3 * (time.perf_counter() - start))
        self.context.profiler = profile = Profile()  # its runs are slower
        for _ in range(min(runs, PROFILED_RUNS)):
            self._execute()
        layers = {name: float(np.median(times)) for name, times in profile.layers.items()}
        return {"milliseconds": milliseconds, "profile": layers}


if __name__ == "__main__":
    result, path, feeds, given, capability, *runs = sys.argv[1:]
    with np.load(feeds) as arrays:
        content = build(path, dict(arrays), given, capability, *map(int, runs))
    Path(result).write_text(json.dumps(content), "utf-8")
