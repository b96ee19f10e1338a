"""``python -m onnxq.targets``: the page of the documentation about targets."""

from __future__ import annotations

import sys

from onnxq.targets import TARGETS
from onnxq.targets.docs_page import page

sys.stdout.write(page(TARGETS.values()))
