"""What the machine is said to have, on systems that are faked, and which targets can be checked there."""

from dataclasses import replace

import pytest

from onnxq.targets import TARGETS
from onnxq.verify import machine
from onnxq.verify.machine import Machine, examine, features, suitability

MACHINE = Machine(
    "3.11",
    "Linux",
    {},
    "x86",
    4,
    {"NEON": False},
    False,
    (),
    (),
    {"onnxruntime": "1.31", "openvino": None, "tensorrt": None},
)


def test_this_machine_is_looked_at():
    found = examine()
    assert found.packages["numpy"]
    assert found.runtimes["onnxruntime"]
    assert found.cores >= 1
    assert "CPUExecutionProvider" in found.providers


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni amx_int8", {"AVX2", "AVX-512", "VNNI", "AMX"}),
        ("flags : avx2 avx_vnni", {"AVX2", "VNNI"}),
        ("Features : fp asimd asimddp i8mm", {"NEON", "dot products (Arm)", "i8mm (Arm)"}),
        ("flags : fpu", set()),
    ],
)
def test_linux_names_the_features_itself(tmp_path, monkeypatch, text, has):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{text}\n", "utf-8")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert {name for name, here in features().items() if here} == has


def test_elsewhere_numpy_is_asked_and_what_it_does_not_know_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "_numpy_features", lambda: {"ASIMD": True, "ASIMDDP": True, "AVX2": False})
    found = features()
    assert (found["NEON"], found["dot products (Arm)"], found["AVX2"], found["AMX"]) == (
        True,
        True,
        False,
        None,
    )
    monkeypatch.setattr(machine, "_numpy_features", dict)
    assert set(features().values()) == {None}


def test_no_driver_is_no_gpu(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert machine._gpus() == ()
    monkeypatch.setattr("shutil.which", lambda name: "/no/such/nvidia-smi")
    assert machine._gpus() == ()


@pytest.mark.parametrize(
    ("target", "changes", "checked", "words"),
    [
        ("onnxruntime", {}, True, "checked and run"),
        ("onnxruntime", {"saturating": True}, True, "onnxruntime-avx2 suits this processor"),
        ("onnxruntime-avx2", {"saturating": True}, True, "checked and run"),
        ("onnxruntime-arm", {}, True, "but on x86"),
        ("onnxruntime", {"features": {"NEON": True}}, True, "but on Arm"),
        ("openvino", {}, False, "pip install 'onnxq[openvino]'"),
        ("openvino", {"runtimes": {"openvino": "2026"}}, True, "checked and run"),
        ("tensorrt-fp8", {"runtimes": {"tensorrt": "1.7"}}, True, "built for SM89 and SM120, but not run"),
        ("tensorrt", {"runtimes": {"tensorrt": "1.7"}, "gpus": ("L4",)}, True, "checked and run"),
        ("qnn", {}, False, "only its rules are checked"),
    ],
)
def test_what_can_be_done_for_a_target(target, changes, checked, words):
    found = suitability(TARGETS[target], replace(MACHINE, **changes))
    assert found.checked is checked
    assert words in found.here


def test_every_runtime_of_a_target_is_known():
    everything = replace(MACHINE, runtimes=dict.fromkeys(MACHINE.runtimes, "1.0"))
    assert all(suitability(t, everything).checked is bool(t.runtimes) for t in TARGETS.values())
