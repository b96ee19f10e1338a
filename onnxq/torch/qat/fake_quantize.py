"""Fake quantization: numbers on the grid of a `QuantSpec`, in float, with gradients that training can use.

    q = clip(round(x / s) + z, qmin, qmax),   y = (q - z) * s

The same as QuantizeLinear and DequantizeLinear give. Backwards, rounding counts as the identity:

    dy/dx = 1 inside the grid, 0 beyond
    dy/ds = round(x / s) - x / s inside,  q - z beyond

Learned scales: "Learned Step Size Quantization", Esser et al. 2020, https://arxiv.org/abs/1902.08153, with
their factor ``1 / sqrt(n * qmax)`` on the gradient of the scale. Zero points are not learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.core.numerics import SMALLEST_SCALE, UNBOUNDED
from onnxq.core.plan import QuantParams, QuantSpec

MOMENTUM = 0.05
"""What one batch counts for in the running range of an activation."""


class FakeQuantize(nn.Module):
    """One group of tensors that share scale and zero point.

    Scales of weights follow the weights, those of activations the running range of what training saw,
    unless they are learned. With `observing` off they stay as they are.

    Attributes:
        scale: ``()``, ``[C]``, or one a block: a parameter if it is learned, else a buffer.
        zero_point: of the same shape, whole numbers in float.
        low, high: the running range of an activation.
        observing: whether training moves the range.
    """

    def __init__(
        self,
        spec: QuantSpec,
        params: QuantParams,
        *,
        constant: bool = False,
        learned: bool = False,
        fixed: bool = False,
        bounds: tuple[float, float] = UNBOUNDED,
    ) -> None:
        """Begin with ``params``.

        Args:
            spec: the number format; its axis is that of the tensor in PyTorch.
            params: scale and zero point to begin with.
            constant: for a weight.
            learned: the scale is a parameter.
            fixed: scale and zero point never change.
            bounds: what the grid may not exceed.
        """
        super().__init__()
        self.spec, self.constant, self.fixed, self.bounds = spec, constant, fixed, bounds
        self.learned = learned and not fixed
        self.observing = not fixed
        scale = torch.tensor(params.scale)
        if self.learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.tensor(params.zero_point.astype(np.float32)))
        if not constant:
            qmin, qmax = spec.limits
            self.register_buffer("low", (qmin - self.zero_point) * scale)
            self.register_buffer("high", (qmax - self.zero_point) * scale)

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def forward(self, real: Tensor, observe: bool = True) -> Tensor:
        """``real`` on the grid; same shape and type.

        Args:
            real: any shape that the spec's axis fits.
            observe: whether its range counts; not that of tensors that only pass on the data of others.
        """
        if self.observing and not self.learned and (self.constant or (self.training and observe)):
            self._follow(real.detach().float())
        if self.learned:
            self._keep_usable()
        qmin, qmax = self.spec.limits
        scale, zero_point = (self._spread(values, real) for values in (self._steps(), self.zero_point))
        factor = self._factor(real) if self.learned else 0.0
        fake: Tensor = _Round.apply(real.float(), scale, zero_point, qmin, qmax, factor)  # type: ignore[no-untyped-call]
        return fake.to(real.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuantize:
        """Moves with the module, but stays float32 when that becomes float16: scales need their digits."""

        def kept(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def params(self) -> QuantParams:
        """What the model is to be written with."""
        dtype = self.spec.dtype.numpy()
        scale = self._steps().detach().cpu().numpy().astype(np.float32)
        return QuantParams(scale, self.zero_point.cpu().numpy().astype(dtype))

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        qmin, qmax = self.spec.limits
        axis = "" if self.spec.axis is None else f", axis={self.spec.axis}"
        return f"{qmin}..{qmax}{axis}{', learned' if self.learned else ''}"

    def _steps(self) -> Tensor:
        """The scale as it is used, which later calls leave alone. A learned power of two is rounded."""
        if not self.learned:
            return self.scale.clone()
        if not self.spec.power_of_two:
            return self.scale
        rounded = torch.exp2(torch.ceil(torch.log2(self.scale.detach())))
        return self.scale + (rounded - self.scale).detach()

    def _follow(self, real: Tensor) -> None:
        """Let the scale follow a weight, or the running range of an activation."""
        if self.constant:
            low, high = weight_range(real, self.spec)
        else:
            least, most = torch.aminmax(real)
            self.low += MOMENTUM * (least - self.low)
            self.high += MOMENTUM * (most - self.high)
            low, high = self.low, self.high
        scale, zero_point = params_from_range(low, high, self.spec, self.bounds)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def _keep_usable(self) -> None:
        """A step of the optimizer may make a scale negative, or a grid exceed its bounds."""
        usable = torch.clamp(self.scale.data, min=SMALLEST_SCALE)
        self.scale.data.copy_(torch.minimum(usable, largest_scale(self.zero_point, self.spec, self.bounds)))

    def _factor(self, real: Tensor) -> float:
        """Of the gradient of a learned scale; for activations, n counts the elements of one sample."""
        samples = 1 if self.constant or real.ndim == 0 else max(real.shape[0], 1)
        return 1 / math.sqrt(max(real.numel() / samples / self.scale.numel(), 1) * self.spec.limits[1])

    def _spread(self, values: Tensor, real: Tensor) -> Tensor:
        """As `onnxq.core.numerics.spread`."""
        axis, size = self.spec.axis, self.spec.block_size
        if axis is None or values.ndim == 0:
            return values
        if size is not None:
            return values.repeat_interleave(size, axis).narrow(axis, 0, real.shape[axis])
        return values.reshape([-1 if i == axis % real.ndim else 1 for i in range(real.ndim)])


class _Round(torch.autograd.Function):
    """The formulas of the module's docstring. What is large is gone over as seldom as can be."""

    @staticmethod
    def forward(
        ctx: Any, real: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float
    ) -> Tensor:
        """``factor`` multiplies the gradient of the scale."""
        steps = real / scale
        rounded = torch.round(steps)
        levels = rounded.clamp(qmin - zero_point, qmax - zero_point)
        inside = levels == rounded
        slope = torch.where(inside, levels - steps, levels) if scale.requires_grad else None
        ctx.save_for_backward(inside, scale, slope)
        ctx.factor = factor
        return levels.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Of the input and of the scale."""
        inside, scale, slope = ctx.saved_tensors
        of_real = gradient * inside if ctx.needs_input_grad[0] else None
        of_scale = None if slope is None else (gradient * slope).sum_to_size(scale.shape) * ctx.factor
        return of_real, of_scale, None, None, None, None


def weight_range(real: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """As `onnxq.core.numerics.weight_range`."""
    axis = spec.axis
    if axis is None:
        return real.amin(), real.amax()
    if spec.block_size is not None:
        blocks = [(part.amin(axis), part.amax(axis)) for part in torch.split(real, spec.block_size, axis)]
        low, high = (torch.stack(ends, axis) for ends in zip(*blocks, strict=True))
        return low, high
    rows = real.movedim(axis, 0).flatten(1)
    return rows.amin(1), rows.amax(1)


def params_from_range(
    low: Tensor, high: Tensor, spec: QuantSpec, bounds: tuple[float, float] = UNBOUNDED
) -> tuple[Tensor, Tensor]:
    """Scale and zero point as `onnxq.core.numerics.params_from_range` gives them, on the tensors' device."""
    low = torch.clamp(low.double(), bounds[0], None).clamp(max=0.0)
    high = torch.clamp(high.double(), None, bounds[1]).clamp(min=0.0)
    qmin, qmax = spec.limits
    if spec.symmetric:
        middle = 0 if spec.dtype.is_signed() else (qmax + qmin + 1) // 2
        scale = _usable(torch.maximum(-low, high) / (qmax - middle), spec)
        return scale, torch.full_like(scale, middle)
    scale = _usable((high - low) / (qmax - qmin), spec)
    zero_point = torch.clamp(torch.round(qmin - low / scale), qmin, qmax).float()
    if not spec.power_of_two:
        scale = torch.minimum(scale, largest_scale(zero_point, spec, bounds))
    return scale, zero_point


def largest_scale(zero_point: Tensor, spec: QuantSpec, bounds: tuple[float, float]) -> Tensor:
    """The largest scale with which the grid stays within ``bounds``; symmetric grids may exceed them."""
    limit = torch.full_like(zero_point, math.inf)
    if spec.symmetric:
        return limit
    for level, bound in zip(spec.limits, bounds, strict=True):
        steps = level - zero_point.double()
        exact = torch.where(steps == 0, math.inf, bound / steps)
        near = exact.float()
        limit = torch.minimum(limit, torch.where(near > exact, torch.nextafter(near, near * 0), near))
    return limit


def _usable(scale: Tensor, spec: QuantSpec) -> Tensor:
    usable = torch.where(scale == 0, 1.0, scale.clamp(min=SMALLEST_SCALE))
    if spec.power_of_two:
        usable = torch.exp2(torch.ceil(torch.log2(usable)))
    return usable.float()
