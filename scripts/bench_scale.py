"""More than one process: the same bytes from shards, processes and Ray; and the cost of it.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed. Merging
keeps one processor busy, so its seconds are those of the processor, which other programs hardly change.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import bench
import cases
import zoo
from bench import Figure, Place, Sections, at_most, exactly
from calibrators.statistics import Statistics
from cases import Case
from measure import ROOT, measured
from onnxq import QuantConfig, calibrate

DRIVER = Path(__file__).with_name("scale_driver.py")

NAMES = ("lite0", "minilm")

FEW = 24
"""The number of samples where only the bytes count."""

MANY = 2000

PARTS = 1000

SHARDS = 8


def onnxq(*arguments: object) -> Any:
    """Run the command line; return what it cost."""
    return measured([sys.executable, "-m", "onnxq.cli", *map(str, arguments)])


def driven(case: Case, output: Path, **job: Any) -> dict[str, float]:
    """Calibrate a case in a process of its own; return its pace, seconds, megabytes and bytes."""
    options = dict(zip((name[2:] for name in case.options[::2]), case.options[1::2], strict=True))
    job["options"] = {**options, **job.get("options", {})}
    data = {"model": str(case.model), "data": str(case.data), "output": str(output), **job}
    run = measured([sys.executable, str(DRIVER), json.dumps(data)], {"PYTHONPATH": str(ROOT)})
    return dict(json.loads(run.output.strip().splitlines()[-1]))


def merged(case: Case, work: Path, *options: object) -> Path:
    """Calibrate a case in shards, and merge them in a random order."""
    files = [work / f"part-{i}.npz" for i in range(1, SHARDS + 1)]
    given = ["--data", case.data, *case.options, *options, "--quiet"]
    for i, file in enumerate(files, 1):
        onnxq("calibrate", case.model, file, "--shard", f"{i}/{SHARDS}", *given)
    random.Random(0).shuffle(files)
    onnxq("merge", *files, work / "merged.npz", "--quiet")
    return work / "merged.npz"


def identical(place: Place) -> list[Figure]:
    """Bytes of the statistics that differ from those of one process (0: the same file)."""
    return [figure for name in NAMES for figure in _identical(name, place)]


def _identical(name: str, place: Place) -> list[Figure]:
    work = place.work / name
    work.mkdir()
    case = cases.CASES[name](place.shared, work)
    few = {"samples": FEW}
    driven(case, work / "one.npz", options=few)
    expected = (work / "one.npz").read_bytes()

    def same(what: str, file: Path) -> Figure:
        found = file.read_bytes()
        wrong = abs(len(found) - len(expected)) + sum(a != b for a, b in zip(found, expected, strict=False))
        return exactly(f"{name}: {what}", wrong, 0)

    figures = [same(f"{SHARDS} shards, merged in random order", merged(case, work, "--samples", FEW))]
    jobs: dict[str, dict[str, Any]] = {
        "batches of 4": {"options": {**few, "batch_size": 4}},
        "2 processes": {"options": few, "workers": 2},
        **{f"Ray, {n} workers": {"options": few, "workers": n, "ray": True} for n in (1, 2, 4)},
        "Ray, 2 workers, batches of 4": {"options": {**few, "batch_size": 4}, "workers": 2, "ray": True},
        "Ray, 2 workers, one killed (kill -9)": {"options": few, "workers": 2, "ray": True, "kill": True},
    }
    for what, job in jobs.items():
        driven(case, work / "other.npz", **job)
        figures.append(same(what, work / "other.npz"))
        (work / "other.npz").unlink()
    return [*figures, *_shuffled(name, case, work)]


def _shuffled(name: str, case: Case, work: Path) -> list[Figure]:
    """Datasets name rows, not files: they are compared with each other, and by their ranges with files."""
    rows = _rows(case)
    np.savez(work / "rows.npz", **rows)
    arrays = Case(case.model, work / "rows.npz", case.evaluation)
    driven(arrays, work / "file.npz")
    found = []
    for seed in (1, 2):
        driven(arrays, work / f"{seed}.npz", shuffle=seed)
        found.append((work / f"{seed}.npz").read_bytes())
    one, other = Statistics.load(work / "1.npz"), Statistics.load(work / "file.npz")
    differing = sum(
        (one[t].low, one[t].high, one[t].count, one[t].trail) != (a.low, a.high, a.count, a.trail)
        or bool((one[t].histogram.counts != a.histogram.counts).any())
        for t, a in other.items()
    )
    return [
        exactly(f"{name}: Ray datasets, two shuffles of 7 partitions", int(found[0] != found[1]), 0),
        exactly(f"{name}: Ray dataset against file, tensors", differing, 0),
    ]


def _rows(case: Case) -> dict[str, Any]:
    """Samples of one shape as arrays."""
    feeds = list(zip(range(20), case.evaluation(), strict=False))
    shapes = [tuple(array.shape for array in each.values()) for _, each in feeds]
    common = max(set(shapes), key=shapes.count)
    chosen = [each for (_, each), shape in zip(feeds, shapes, strict=True) if shape == common]
    return {name: np.concatenate([each[name] for each in chosen]) for name in chosen[0]}


def quantized(place: Place) -> list[Figure]:
    """A model made from merged statistics alone (--with-moments) beside the one made from the data."""
    return [figure for name in NAMES for figure in _quantized(name, place)]


def _quantized(name: str, place: Place) -> list[Figure]:
    import onnxq as package

    work = place.work / name
    work.mkdir()
    case = cases.CASES[name](place.shared, work)
    file = merged(case, work, "--with-moments")
    fixed = {"time_limit": 600.0, "verify": "off", "autotune": "off"}
    preprocess = {"preprocess": case.options[1]} if case.options else {}
    figures = []
    for what, correct in {"bias, rounding": ("bias", "rounding"), "default": None}.items():
        given = {**fixed, **({"correct": correct} if correct else {})}
        there = package.quantize_static(
            case.model, work / "a.onnx", config=package.QuantConfig(data=case.data, **preprocess, **given)
        )
        here = package.quantize_static(
            case.model, work / "b.onnx", config=package.QuantConfig(from_table=file, **given)
        )
        kept = [[one.name for one in each.corrections if one.kept] for each in (there, here)]
        assert there.quality is not None
        assert here.quality is not None
        figures += [
            exactly(f"{name}, {what}: corrections kept otherwise", len(set(kept[0]) ^ set(kept[1])), 0),
            at_most(f"{name}, {what}: SQNR, dB apart", abs(there.quality.sqnr - here.quality.sqnr), 0.05),
            Figure(f"{name}, {what}: SQNR, dB", here.quality.sqnr),
        ]
    carried = Statistics.load(file).inputs
    assert carried is not None
    return [*figures, Figure(f"{name}: MB of inputs in the file", carried.bytes / 1e6)]


def speed(place: Place) -> list[Figure]:
    """Ray with two actors against the plain command: Lite0, 2,000 pictures, after start-up, in turns."""
    case = cases.lite0(place.shared, place.work)
    many = _copies(case.data, place.work / "pictures", MANY)
    case = Case(case.model, many, case.evaluation, case.options)
    plain, ray, start = [], [], []
    for turn in range(2):
        one = driven(case, place.work / f"plain-{turn}.npz")
        two = driven(case, place.work / f"ray-{turn}.npz", workers=2, ray=True)
        plain.append(1e3 * one["pace"])
        ray.append(1e3 * two["pace"])
        start.append(two["seconds"] - MANY * two["pace"])
    same = (place.work / "plain-0.npz").read_bytes() == (place.work / "ray-0.npz").read_bytes()
    return [
        at_most("time of Ray, as a multiple of the plain command's", min(ray) / min(plain), 1.25),
        Figure("plain: ms a sample", min(plain)),
        Figure("Ray: ms a sample", min(ray)),
        Figure("Ray: seconds of start-up", min(start)),
        exactly("files that differ", int(not same), 0),
    ]


def _copies(folder: Path, goal: Path, count: int) -> Path:
    """Link ``count`` pictures to those of a folder, over and over."""
    goal.mkdir()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for i in range(count):
        (goal / f"{i:05}{files[i % len(files)].suffix}").symlink_to(files[i % len(files)])
    return goal


def merge(place: Place) -> list[Figure]:
    """Merge 1,000 parts."""
    figures = []
    for name in NAMES:
        work = place.work / name
        work.mkdir()
        case = cases.CASES[name](place.shared, work)
        files = _parts(case, work)
        run = onnxq("merge", *files, work / "merged.npz", "--quiet")
        size = sum(file.stat().st_size for file in files) / len(files)
        figures += [
            at_most(f"{name}: seconds of one processor", run.processor_seconds, 60),
            Figure(f"{name}: seconds by the clock, beside other programs", run.seconds),
            at_most(f"{name}: peak MB", run.megabytes, 500, form="{:.0f}"),
            Figure(f"{name}: kB of a part", size / 1e3, form="{:.0f}"),
        ]
        shutil.rmtree(work)
    return figures


def _parts(case: Case, work: Path) -> list[Path]:
    """Write 1,000 parts: those of 20 samples, over and over, each with its own place among the parts."""
    preprocess = {"preprocess": case.options[1]} if case.options else {}
    config = QuantConfig(data=case.data, samples=20, **preprocess)
    made = [calibrate(case.model, config=config, shard=f"{i}/20") for i in range(1, 21)]

    def write(i: int) -> Path:
        part = copy(made[i % len(made)])
        part.part = {**part.part, "shard": [i + 1, PARTS], "samples": PARTS}
        part.save(work / f"part-{i}.npz")
        return work / f"part-{i}.npz"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(PARTS)))


def memory(place: Place) -> list[Figure]:
    """Peak memory of the driver, over the number of samples and workers: flat."""
    case = cases.resnet20(place.shared, place.work)
    stored = sorted(case.data.iterdir())
    for i in range(len(stored), 3200):
        (case.data / f"more-{i:05}.npz").symlink_to(stored[i % len(stored)].resolve())
    found = {
        (samples, workers): driven(
            case, place.work / "s.npz", options={"samples": samples}, workers=workers, ray=True
        )["megabytes"]
        for samples, workers in ((400, 1), (3200, 1), (400, 2), (3200, 2), (3200, 4))
    }
    least = min(found.values())
    return [
        *(Figure(f"{s} samples, {w} workers: MB", mb, form="{:.0f}") for (s, w), mb in found.items()),
        at_most("the most, as a multiple of the least", max(found.values()) / least, 1.1),
    ]


def sweep(place: Place) -> list[Figure]:
    """A sweep of 3 models x 3 targets x 2 methods, interrupted and resumed."""
    case = cases.resnet20(place.shared, place.work)
    random_data = place.work / "random.npz"
    x = np.random.default_rng(0).standard_normal((12, 3, 224, 224)).astype(np.float32)
    models: dict[str, Any] = {"resnet20": {"model": str(case.model), "data": str(case.data)}}
    for name in ("squeezenet", "shufflenet"):
        data = random_data.with_name(f"{name}.npz")
        given: dict[str, Any] = {_input(zoo.light(name)): x}
        np.savez(data, **given)
        models[name] = {"model": str(zoo.light(name)), "data": str(data)}
    plan = {
        "models": models,
        "targets": ["onnxruntime", "tensorrt", "openvino"],
        "options": {method: {"method": method} for method in ("minmax", "mse")},
        "common": {"samples": 12, "correct": "none", "verify": "off", "autotune": "off", "threads": 1},
    }
    (place.work / "plan.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    folder, count = place.work / "out", 18
    command = [sys.executable, "-m", "onnxq.cli", "sweep", str(place.work / "plan.yaml"), str(folder)]
    process = subprocess.Popen([*command, "--workers", "2", "--quiet"], cwd=ROOT, start_new_session=True)
    while len(list(folder.rglob("*.json"))) < 5 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    run = measured([*command, "--workers", "2"])
    rows = list(folder.rglob("*.json"))
    failed = sum("error" in json.loads(path.read_text("utf-8")) for path in rows)
    again = sum(path.stat().st_mtime_ns != made for path, made in before.items())
    return [
        Figure("jobs done before the interrupt", len(before), form="{:.0f}"),
        exactly("jobs in the end", len(rows), count),
        exactly("failed", failed, 0),
        exactly("done twice", again, 0),
        exactly("pages", int((folder / "sweep.html").exists()), 1),
        Figure("seconds of the second run", run.seconds),
    ]


def _input(model: Path) -> str:
    import onnx

    graph = onnx.load(model).graph
    weights = {each.name for each in graph.initializer}
    return str(next(each.name for each in graph.input if each.name not in weights))


SECTIONS: Sections = {
    "identical": identical,
    "quantized": quantized,
    "merge": merge,
    "memory": memory,
    "sweep": sweep,
    "speed": speed,
}

if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
