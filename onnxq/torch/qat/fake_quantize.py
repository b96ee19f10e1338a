"""Fake quantization: round to the grid of a `QuantSpec` in float, with gradients that training can use.

    q = clip(round(x / s) + z, qmin, qmax),   y = (q - z) * s

This equals QuantizeLinear and DequantizeLinear. In the backward pass, rounding counts as the identity:

    dy/dx = 1 inside the grid, 0 outside
    dy/ds = round(x / s) - x / s inside,  q - z outside

Scales can be learned as in "Learned Step Size Quantization", Esser et al. 2020,
https://arxiv.org/abs/1902.08153, with the factor ``1 / sqrt(n * qmax)`` on the gradient of the scale. Zero
points are not learned.
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
"""The weight of one batch in the running range of an activation."""


class FakeQuantize(nn.Module):
    """The fake quantizer of one group of tensors that share scale and zero point.

    Unless they are learned, scales of weights follow the weights, and scales of activations follow the
    running range in training. They stay unchanged if `observing` is off.

    Attributes:
        scale: ``()``, ``[C]``, or one per block: a parameter if it is learned, else a buffer.
        zero_point: of the same shape, whole numbers in float.
        low: the lower end of the running range of an activation.
        high: the upper end of the running range.
        observing: whether scales follow weights or ranges.
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
        """Start with ``params``.

        Args:
            spec: the number format; its axis is that of the tensor in PyTorch.
            params: the initial scale and zero point.
            constant: whether this is for a weight.
            learned: whether the scale is a parameter.
            fixed: whether scale and zero point never change.
            bounds: (low, high) that the grid must not exceed.
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
        """Round ``real`` to the grid; the result has the same shape and type.

        Args:
            real: a tensor of any shape that has the spec's axis.
            observe: whether its range counts; off for tensors that only pass on the data of others.
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
        """Move with the module, but stay float32 if it becomes float16, because scales need the precision."""

        def kept(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def params(self) -> QuantParams:
        """The parameters to write the model with."""
        dtype = self.spec.dtype.numpy()
        scale = self._steps().detach().cpu().numpy().astype(np.float32)
        return QuantParams(scale, self.zero_point.cpu().numpy().astype(dtype))

    def extra_repr(self) -> str:
        """The text that ``print(module)`` shows."""
        qmin, qmax = self.spec.limits
        axis = "" if self.spec.axis is None else f", axis={self.spec.axis}"
        return f"{qmin}..{qmax}{axis}{', learned' if self.learned else ''}"

    def _steps(self) -> Tensor:
        """The scale to compute with, which later calls do not change. A learned power of two is rounded."""
        if not self.learned:
            return self.scale.clone()
        if not self.spec.power_of_two:
            return self.scale
        rounded = torch.exp2(torch.ceil(torch.log2(self.scale.detach())))
        return self.scale + (rounded - self.scale).detach()

    def _follow(self, real: Tensor) -> None:
        """Update the scale from a weight, or from the running range of an activation."""
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
        """Correct a scale that a step of the optimizer made negative or too large for the bounds."""
        usable = torch.clamp(self.scale.data, min=SMALLEST_SCALE)
        self.scale.data.copy_(torch.minimum(usable, largest_scale(self.zero_point, self.spec, self.bounds)))

    def _factor(self, real: Tensor) -> float:
        """The factor of the gradient of a learned scale; for activations, n is the elements per sample."""
        samples = 1 if self.constant or real.ndim == 0 else max(real.shape[0], 1)
        return 1 / math.sqrt(max(real.numel() / samples / self.scale.numel(), 1) * self.spec.limits[1])

    def _spread(self, values: Tensor, real: Tensor) -> Tensor:
        """Do the same as `onnxq.core.numerics.spread` with PyTorch."""
        axis, size = self.spec.axis, self.spec.block_size
        if axis is None or values.ndim == 0:
            return values
        if size is not None:
            return values.repeat_interleave(size, axis).narrow(axis, 0, real.shape[axis])
        return values.reshape([-1 if i == axis % real.ndim else 1 for i in range(real.ndim)])


class _Round(torch.autograd.Function):
    """The formulas of the module's docstring, with as few passes over large tensors as possible."""

    @staticmethod
    def forward(
        ctx: Any, real: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float
    ) -> Tensor:
        """Round to the grid.

        Args:
            ctx: keeps tensors for `backward`.
            real: the tensor to round.
            scale: the scale, in a shape that broadcasts to ``real``.
            zero_point: the zero point, of the same shape.
            qmin: the lowest level.
            qmax: the highest level.
            factor: multiplies the gradient of the scale.
        """
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
        """Compute the gradients of the input and of the scale."""
        inside, scale, slope = ctx.saved_tensors
        of_real = gradient * inside if ctx.needs_input_grad[0] else None
        of_scale = None if slope is None else (gradient * slope).sum_to_size(scale.shape) * ctx.factor
        return of_real, of_scale, None, None, None, None


def weight_range(real: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Do the same as `onnxq.core.numerics.weight_range` with PyTorch."""
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
    """Do the same as `onnxq.core.numerics.params_from_range`, on the device of the tensors.

    Args:
        low: the lower ends of the ranges.
        high: the upper ends, of the same shape.
        spec: the number format.
        bounds: (low, high) that the grid must not exceed.

    Returns:
        Scale and zero point.
    """
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
    """Compute the largest scale with which the grid stays within bounds; symmetric grids may exceed them.

    Args:
        zero_point: the zero point.
        spec: the number format.
        bounds: (low, high).
    """
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
