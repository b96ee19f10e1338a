"""Declare the number of axes of inputs and outputs for which the model declares none.

ONNX's checker demands it of every input and output that is a tensor, ONNX Runtime does not.
"""

from __future__ import annotations

import onnx_ir as ir

from calibrators.collect import run_batch
from calibrators.data.samples import Sample, input_specs
from calibrators.data.synthetic import synthetic_samples
from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.calibration.sample_split import Samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError


def with_ranks(model: ir.Model, reference: ir.Model, samples: Samples, config: QuantConfig) -> ir.Model:
    """Give inputs and outputs without a shape as many axes of unknown size as they have with a sample.

    Args:
        model: the quantized model; it is not changed.
        reference: the float model, which is run.
        samples: the samples; if there are none, a synthetic one is made.
        config: the options.

    Returns:
        a copy, or the model itself if all shapes are declared.

    Raises:
        ModelError: an input has no shape, and there are no samples because a table gives the ranges.
        CalibrationError: the model takes none of the samples.
    """
    values = (*model.graph.inputs, *model.graph.outputs)
    unknown = [v.name for v in values if isinstance(v.type, ir.TensorType) and v.shape is None]
    if not unknown:
        return model
    names = [name for value in model.graph.outputs if (name := value.name) in unknown and name is not None]
    ranks = _ranks(reference, names, _candidates(reference, samples, config), config)
    copy = model.clone()
    for value in (*copy.graph.inputs, *copy.graph.outputs):
        if value.name in unknown:
            value.shape = ir.Shape([None] * ranks[value.name])
    return copy


def _candidates(reference: ir.Model, samples: Samples, config: QuantConfig) -> list[Sample]:
    if known := [*samples.fit_samples, *samples.eval_samples]:
        return known
    if config.from_table is not None and (
        bare := [str(i) for i in input_specs(reference) if i.shape is None]
    ):
        raise ModelError(
            f"input {', '.join(bare)}: with ranges from a table there is no data to take the number of axes "
            "from. Declare the input's shape in the model."
        )
    return list(synthetic_samples(reference, input_specs(reference), 1, config.seed))


def _ranks(
    model: ir.Model, outputs: list[str], samples: list[Sample], config: QuantConfig
) -> dict[str | None, int]:
    """Count the axes of all inputs and of some outputs, with the first sample that the model takes."""
    session = open_session(model, providers=config.providers, threads=config.threads)
    for number, sample in enumerate(samples, 1):
        try:
            given = run_batch(session, outputs, sample)
        except CalibrationError:
            if number == len(samples):
                raise
        else:
            break
    arrays = {**sample.feeds, **dict(zip(outputs, given, strict=True))}
    return {name: array.ndim for name, array in arrays.items()}
