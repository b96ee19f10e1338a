"""More than one process or machine: calibration on local workers or on Ray, and sweeps over many models."""

from onnxq.distributed.calibration_run import calibrate_on
from onnxq.distributed.datasets import calibrate_dataset
from onnxq.distributed.ray_actors import Cluster
from onnxq.distributed.worker_executor import WorkerExecutor
from onnxq.distributed.worker_pool import Workers

__all__ = ["Cluster", "WorkerExecutor", "Workers", "calibrate_dataset", "calibrate_on"]
