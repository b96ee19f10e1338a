"""From statistics to the parameters of activations."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from calibrators.statistics import TensorStatistics
from onnxq.calibration.qparams import calibrator, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.plan import Group, QuantSpec


@pytest.mark.parametrize(("method", "room"), [("auto", 2.0), ("minmax", 1.0)])
def test_sixteen_bits_leave_room_for_values_that_were_not_seen(method, room):
    statistics = TensorStatistics()
    statistics.update(np.linspace(-1, 3, 10_000, dtype=np.float32).reshape(100, 100))
    group = Group("x", QuantSpec(ir.DataType.UINT16, symmetric=False), ("x",), ("x",))
    source = from_statistics({"x": statistics}, calibrator(QuantConfig(method=method)))
    assert float(source(group).scale) * 65535 == pytest.approx(4 * room, rel=1e-3)
    bounded = replace(group, bounds=(0.0, 3.5))
    assert float(source(bounded).scale) * 65535 == pytest.approx(min(3 * room, 3.5), rel=1e-3)
    narrow = replace(group, spec=QuantSpec(ir.DataType.UINT8, symmetric=False))
    assert float(source(narrow).scale) * 255 <= 4.001
