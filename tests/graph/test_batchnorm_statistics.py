"""The bits that are lost by quantizing before a BatchNormalization are those that are lost."""

import numpy as np
import pytest
from graphs import parse

from onnxq.graph.batchnorm_statistics import BatchNorm, lost_bits, read_batchnorm


def rounded(x):
    """Rounded to 256 levels over the range of ``x``, which includes zero."""
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    return np.round(x / step) * step


CHANNELS = {
    "alike": ([1.0, 1.1, 0.9], [0.0, 0.1, 0.0], [1.0, 1.0, 1.1]),
    "different deviations": ([2.0, 30.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    "different means": ([1.0, 1.0, 1.0], [5.0, -40.0, 900.0], [1.0, 1.0, 1.0]),
    "different outputs": ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 100.0, 0.01]),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_lost_bits_are_those_that_are_lost(kind):
    deviation, mean, gamma = (np.array(row) for row in CHANNELS[kind])
    norm = BatchNorm(gamma, np.zeros(3), mean, deviation)
    power = np.array([1.0, 2.0, 0.5])
    x = mean + deviation * np.random.default_rng(0).uniform(-3, 3, (5000, 3))
    before, after = ((v - mean) / deviation * gamma for v in (rounded(x), x))
    noises = [np.square(y - after) @ power for y in (before, rounded(after))]
    measured = np.log2(noises[0].sum() / noises[1].sum()) / 2
    assert lost_bits(norm, power) == pytest.approx(measured, abs=0.3)


@pytest.mark.parametrize("attributes", ["", "<epsilon=0.5>"])
def test_the_constants_of_a_batchnorm(attributes):
    model = parse(
        f"""g (float[N,2,4] x) => (float[N,2,4] y) <float[2] gamma, float[2] beta, float[2] mean, float[2] var> {{
        y = BatchNormalization {attributes} (x, gamma, beta, mean, var) }}""",
        var=[4.0, 8.5],
    )
    norm = read_batchnorm(model.graph[0])
    assert norm is not None
    np.testing.assert_allclose(
        np.square(norm.deviation), np.array([4.0, 8.5]) + (0.5 if attributes else 1e-5)
    )


def test_computed_statistics_are_none():
    text = """g (float[N,2,4] x, float[2] mean) => (float[N,2,4] y) <float[2] gamma, float[2] beta, float[2] var> {
      y = BatchNormalization (x, gamma, beta, mean, var) }"""
    assert read_batchnorm(parse(text).graph[0]) is None
