"""Statistics of tensors, which merge exactly, in any order and from any number of machines."""

from __future__ import annotations

from calibrators.statistics.collection import Statistics
from calibrators.statistics.tensor import TensorStatistics

__all__ = ["Statistics", "TensorStatistics"]
