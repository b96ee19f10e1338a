"""More than one process or machine: calibration on local workers or on Ray, and sweeps over many models."""

from onnxq.distributed.calibration_run import Workers, calibrate_on
from onnxq.distributed.datasets import calibrate_dataset
from onnxq.distributed.ray_actors import Cluster

__all__ = ["Cluster", "Workers", "calibrate_dataset", "calibrate_on"]
