"""Convert a table or statistics to a table of another format: `onnxq table`."""

from __future__ import annotations

import logging
from pathlib import Path

from calibrators.statistics import Statistics
from onnxq.calibration import tables
from onnxq.calibration.qparams import calibrator
from onnxq.calibration.tables.sources import of_statistics
from onnxq.calibration.tables.table import Table
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.pipelines.preflight import as_onnxq_errors, check_places

logger = logging.getLogger(__name__)


def convert(source: Path, goal: Path, name: str | None, config: QuantConfig) -> Table:
    """Convert ``source``, a table or saved statistics, to a table.

    Args:
        source: the file to read; its content determines its format.
        goal: the file to write.
        name: the format to write; None: by the name of the file.
        config: the method that chooses ranges from statistics.

    Returns:
        The ranges that were written.

    Raises:
        OnnxqError: the file cannot be read or written; ``goal`` is then left unchanged.
    """
    known = tables.format_for(goal, name)
    check_places((source,), known.files(goal))
    with as_onnxq_errors():
        if tables.is_statistics(source):
            table = of_statistics(_statistics(source), calibrator(config), known.spec)
        else:
            _refuse_method(source, config)
            table = tables.read(source)
        tables.write(tables.encode(table, goal, known))
    logger.info("%s: %d tensors, %d weights", goal, len(table.activations), len(table.weights))
    return table


def _statistics(source: Path) -> Statistics:
    statistics = Statistics.load(source)
    if not statistics.complete:
        logger.warning(
            "INCOMPLETE STATISTICS: the calibration of %s was interrupted after %d samples",
            source,
            statistics.samples,
        )
    return statistics


def _refuse_method(source: Path, config: QuantConfig) -> None:
    if given := config.model_fields_set & {"method", "percentile"}:
        raise ConfigError(
            f"{source} is a table, whose ranges are chosen already: {', '.join(sorted(given))} applies to "
            "statistics only"
        )
