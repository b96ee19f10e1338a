"""Give the package index the README with links that work there; all other metadata is in setup.cfg."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def absolute(text: str, home: str) -> str:
    """Let relative links of a page start at ``home``, where the files of the project are shown."""
    return re.sub(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", rf"]({home}/\1)", text)


if __name__ == "__main__":
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    source = dict(line.split(" = ") for line in settings["metadata"]["project_urls"].strip().splitlines())[
        "Source"
    ]
    setup(
        long_description=absolute((ROOT / "README.md").read_text("utf-8"), source),
        long_description_content_type="text/markdown",
    )
