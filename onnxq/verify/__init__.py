"""What real runtimes say of a Q/DQ model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from onnxq.verify.onnxruntime import unfused

Verifier = Callable[[str | os.PathLike[str], Mapping[str, str]], tuple[str, ...]]
"""(model path, planned nodes: name -> operator type) -> those that the runtime runs in float after all."""

VERIFIERS: Mapping[str, Verifier] = {"onnxruntime": unfused}
"""By target. A target that is not listed is not checked."""
