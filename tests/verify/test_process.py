"""Processes of their own: whatever becomes of them is an answer."""

import pytest

from onnxq.verify import process

PROGRAMS = {
    "good": "import sys, json; open(sys.argv[1], 'w').write(json.dumps(sys.argv[2:]))",
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "error": "raise RuntimeError('no such thing')",
    "endless": "import time; time.sleep(60)",
}


@pytest.fixture
def workers(tmp_path, monkeypatch):
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.setattr(process, "WORKERS", tmp_path)


def test_the_answer_is_read(workers):
    assert process.run_in_process("good", ["a", "b c"], 30).content == ["a", "b c"]


@pytest.mark.parametrize(
    ("worker", "words", "timed_out"),
    [
        ("crash", "it crashed (SIGSEGV)", False),
        ("error", "it failed: RuntimeError: no such thing", False),
        ("endless", "it did not end within 1 s", True),
    ],
)
def test_no_answer_is_told_in_words(workers, worker, words, timed_out):
    answer = process.run_in_process(worker, [], 1 if timed_out else 30)
    assert answer == process.Answer(None, words, timed_out)


def test_what_is_installed():
    assert process.installed("no_such_module", "json") == "json"
    assert process.installed("no_such_module") is None
