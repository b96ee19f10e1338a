"""The configuration of onnxruntime-genai and tokenizers follow a model into another folder."""

import json

import pytest

from onnxq.graph.generation_files import copy_generation_files

CONFIG = {
    "model": {"decoder": {"filename": "model.onnx", "head_size": 64}, "vision": {"filename": "eyes.onnx"}}
}


@pytest.fixture
def folders(tmp_path):
    source, goal = tmp_path / "float", tmp_path / "int4"
    source.mkdir()
    goal.mkdir()
    (source / "genai_config.json").write_text(json.dumps(CONFIG))
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("mine")
    return source, goal


def test_the_configuration_names_the_written_model(folders):
    source, goal = folders
    copy_generation_files(source / "model.onnx", goal / "model_int4.onnx")
    found = json.loads((goal / "genai_config.json").read_text())
    assert found["model"]["decoder"] == {"filename": "model_int4.onnx", "head_size": 64}
    assert found["model"]["vision"] == {"filename": "eyes.onnx"}
    assert {path.name for path in goal.iterdir()} == {"genai_config.json", "tokenizer.json"}


def test_files_that_are_there_stay(folders):
    source, goal = folders
    (goal / "genai_config.json").write_text("mine")
    copy_generation_files(source / "model.onnx", goal / "model.onnx")
    assert (goal / "genai_config.json").read_text() == "mine"
    assert (goal / "tokenizer.json").exists()


@pytest.mark.parametrize("text", ["{", json.dumps({"model": {"decoder": {"filename": "other.onnx"}}})])
def test_a_configuration_of_something_else_is_not_copied(text, folders, caplog):
    source, goal = folders
    (source / "genai_config.json").write_text(text)
    copy_generation_files(source / "model.onnx", goal / "model_int4.onnx")
    assert not list(goal.iterdir())
    assert "is not copied" in caplog.text


def test_one_folder_keeps_its_configuration(folders):
    source, _ = folders
    before = {path.name: path.read_text() for path in source.iterdir()}
    copy_generation_files(source / "model.onnx", source / "model_int4.onnx")
    assert before == {path.name: path.read_text() for path in source.iterdir()}
