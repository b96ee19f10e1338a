"""What is published: links of the README, and one version everywhere."""

import ctypes
import importlib.util
import re
from configparser import ConfigParser
from pathlib import Path

from onnxq.cli import commands

ROOT = Path(__file__).parents[2]


def setup():
    spec = importlib.util.spec_from_file_location("package_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metadata():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    return settings["metadata"]


def test_links_of_the_readme_work_on_a_package_index():
    text = setup().absolute((ROOT / "README.md").read_text("utf-8"), "https://a.b/c")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert any(link.startswith("https://a.b/c/docs/") for link in links)
    assert all(link.startswith(("https://", "#")) for link in links)


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", (ROOT / "README.md").read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_version_and_the_licence_are_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {metadata()['version']}\n" in citation
    ours, shipped = metadata()["license_expression"].split(" AND ")
    assert f"license: {ours}\n" in citation
    first, *others = metadata()["license_files"].split()
    assert "Apache License" in (ROOT / first).read_text("utf-8")
    texts = [path.read_text("utf-8") for pattern in others for path in ROOT.glob(pattern)]
    assert (shipped, len(texts)) == ("MIT", 3)
    assert all("Permission is hereby granted, free of charge" in text for text in texts)


def test_each_library_of_the_report_carries_its_licence():
    folder = ROOT / "onnxq" / "pipelines" / "report" / "vendor"
    for path in folder.glob("*.js"):
        assert "Permission is hereby granted, free of charge" in path.read_text("utf-8")[:4000]


def test_another_c_library_is_no_obstacle(monkeypatch):
    """CDLL(None) raises TypeError on Windows."""

    def missing(name):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    commands._share_memory_pools()
