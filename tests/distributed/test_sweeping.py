"""A sweep makes every job once, also after an interrupt and beside jobs that fail."""

import json
import re
from pathlib import Path

import pytest
from cli import save_data, save_model

from onnxq.cli import commands
from onnxq.core.errors import ConfigError
from onnxq.distributed import sweeping as module
from onnxq.distributed.calibration_run import Workers
from onnxq.distributed.sweep_job import make, make_apart
from onnxq.distributed.sweep_page import front
from onnxq.distributed.sweep_plan import SweepJob, read_plan
from onnxq.distributed.sweeping import sweep

PLAN = """
models:
  one: {model: m.onnx, data: d.npz}
  broken: {model: missing.onnx, data: d.npz}
targets: [onnxruntime, tensorrt]
options:
  plain: {correct: none}
  minmax: {correct: [bias], method: minmax}
common: {threads: 1, verify: "off", autotune: "off"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz", 12)
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(monkeypatch):
    """Run jobs in this process, and count them."""
    made = []

    def one(job):
        made.append(job.name)
        return make(job)

    monkeypatch.setattr(module, "make_apart", one)
    return made


def real(names):
    return sorted(name for name in names if name[0] == "one")


def test_all_jobs_once_and_failures_are_listed(here, folder):
    result = sweep(Path("plan.yaml"), folder / "out")
    assert len(result.rows) == len(here) == 8
    assert [row["name"][0] for row in result.failed] == ["broken"] * 4
    assert all("missing.onnx: no such file" in row["error"] for row in result.failed)
    made = [row for row in result.rows if "error" not in row]
    assert all(row["sqnr"] > 10 and row["bytes"] > 0 for row in made)
    assert (folder / "out" / "one" / "tensorrt" / "minmax.onnx").exists()
    page = result.page.read_text("utf-8")
    assert "<svg" in page
    assert "4 of 8 jobs failed" in page
    assert not re.search(r"(src|href)=.(?!#)", page), "it loads nothing"


def test_an_interrupted_sweep_goes_on(here, folder):
    def progress(stage, done=0, total=None):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(Path("plan.yaml"), folder / "out", progress=progress)
    assert real(here)
    sweep(Path("plan.yaml"), folder / "out")
    assert len(real(here)) == len(set(real(here))) == 4, "nothing that was made is made twice"
    here.clear()
    assert sweep(Path("plan.yaml"), folder / "out").resumed == 4
    assert {name[0] for name in here} == {"broken"}


def test_a_job_is_done_again_if_its_files_or_options_change(here, folder):
    sweep(Path("plan.yaml"), folder / "out")
    here.clear()
    save_data(folder / "d.npz", 15)
    (folder / "plan.yaml").write_text(PLAN.replace("[onnxruntime, tensorrt]", "[tensorrt]"))
    sweep(Path("plan.yaml"), folder / "out")
    assert real(here) == [("one", "tensorrt", "minmax"), ("one", "tensorrt", "plain")]


def test_a_process_that_dies_is_a_failed_job(folder, monkeypatch):
    job = read_plan(Path("plan.yaml"), folder)[0]
    monkeypatch.setattr(SweepJob, "dumps", lambda _: "no json")
    row = make_apart(job)
    assert "the process ended with 1" in row["error"]
    assert json.loads(job.result.read_text())["error"] == row["error"]


def test_the_command(capsys, folder):
    (folder / "plan.yaml").write_text(PLAN.replace("[onnxruntime, tensorrt]", "[onnxruntime]"))
    assert commands.main(["sweep", "plan.yaml", "out", "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "4 jobs: 2 made, 0 of them before; 2 failed" in shown
    assert "no such file" in shown


def test_the_front():
    rows = [
        {"name": ["m", "t", str(i)], "sqnr": sqnr, "bytes": size}
        for i, (sqnr, size) in enumerate([(20, 5), (30, 9), (25, 5), (24, 7), (None, 1), (30, 10)])
    ]
    assert front(rows, "bytes") == [("m", "t", "2"), ("m", "t", "1")]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ("target: x", "unknown entry target"),
        ("targets: [tensorrt]", "models: expected"),
        ("models: {a: {data: d}}", "models: a: expected a path"),
        ("models: [m.onnx]\noptions: {a: {metod: mse}}", r"m, onnxruntime, a: .*metod"),
        ("models: [m.onnx]\ntargets: tensorrt", "targets: expected a list"),
        ("models: ['m!.onnx', 'm?.onnx']", "the same name"),
    ],
)
def test_wrong_plans(plan, match, folder):
    (folder / "wrong.yaml").write_text(plan)
    with pytest.raises(ConfigError, match=match):
        read_plan(folder / "wrong.yaml", folder)


def test_several_workers(here, folder):
    assert len(sweep(Path("plan.yaml"), folder / "out", Workers(2)).rows) == 8
