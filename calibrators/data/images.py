"""Decode images and convert them to the input of an image model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from calibrators.data.preprocess import DEFAULT, PRESETS, Preprocess, parse_preprocess
from calibrators.data.samples import Array, Dim, InputSpec, describe, shape_text
from calibrators.errors import CalibrationError

__all__ = [
    "DEFAULT",
    "PRESETS",
    "SUFFIXES",
    "Frame",
    "Preprocess",
    "frame_for",
    "image_input",
    "load_image",
    "parse_preprocess",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

PER_BOX = ("classes", "indices", "crowd")
"""The parts of a label that hold one entry for each box."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
"""The formats of images that are read, whatever the suffix of the file. Pillow knows more: for PostScript it
starts Ghostscript, which runs the file as a program."""

_STEP_16_BIT = 257
"""65535 / 255: the step between neighbouring 8-bit levels on the 16-bit scale."""


@dataclass(frozen=True)
class Frame:
    """Preprocessing adapted to one input.

    Attributes:
        resize: shorter side after resizing, in pixels; None: just large enough to cover the crop.
        height: height of the crop, in pixels; None: the height after resizing.
        width: width of the crop, in pixels; None: the width after resizing.
        channels: 3, or 1 for grey.
        last: whether the channels are the last axis.
        scale: whether to subtract the mean and divide by std.
    """

    resize: int | None
    height: int | None
    width: int | None
    channels: int
    last: bool
    scale: bool


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in an input.

    Attributes:
        scale: pixels of the input for one of the picture, along width and height.
        start: the left and upper edge of the crop, in pixels of the resized picture.
        size: width and height of the input in pixels.
    """

    scale: tuple[float, float]
    start: tuple[int, int]
    size: tuple[int, int]

    def placed(self, label: Any) -> Any:
        """Return a label with its boxes in pixels of the input, without those that lie outside."""
        if not isinstance(label, Mapping) or "boxes" not in label:
            return label
        scale, start, size = (np.tile(pair, 2) for pair in (self.scale, self.start, self.size))
        boxes = np.clip(np.reshape(label["boxes"], (-1, 4)) * scale - start, 0, size)
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        each = {name: np.asarray(label[name])[inside] for name in PER_BOX if name in label}
        return {**label, **each, "boxes": boxes[inside]}


def image_input(inputs: Sequence[InputSpec]) -> InputSpec:
    """Return the model's only input, if it can take images.

    Raises:
        CalibrationError: there are several inputs, or the shape or type is not that of an image.
    """
    help_ = f"images cannot feed this model, which takes {describe(inputs)}: give a .npz file with its inputs"
    if len(inputs) != 1:
        raise CalibrationError(help_)
    spec = inputs[0]
    number = spec.dtype.kind == "f" or (spec.dtype.kind in "iu" and spec.dtype != np.int8)
    if not (number and _is_image_shape(spec.shape)):
        raise CalibrationError(help_)
    return spec


def _is_image_shape(shape: tuple[Dim, ...] | None) -> bool:
    """Whether the shape has four axes, or three that are surely those of one image."""
    if shape is None or len(shape) == 4:
        return True
    return len(shape) == 3 and (shape[0] == 3 or (shape[2] == 3 and None not in map(_fixed, shape)))


def frame_for(preprocess: Preprocess, spec: InputSpec) -> Frame:
    """Choose sizes and layout for one input.

    Values that the user gave are kept and must fit. The crop of a preset follows the size of the model's
    input, and its resize changes in proportion.

    Raises:
        CalibrationError: a given layout, crop, mean or std does not fit the input; the message names both.
    """
    last = _channels_last(preprocess, spec)
    dims: tuple[Dim, ...] = (None, None, None) if spec.shape is None else spec.shape[-3:]
    height, width, channels = dims if last else (*dims[1:], dims[0])
    if channels not in (1, 3) and isinstance(channels, int):
        raise CalibrationError(
            f"input {spec} has {channels} channels with layout {'nhwc' if last else 'nchw'}; an image has "
            "3, or 1 if grey: give the layout in the preprocessing, or a .npz file with the inputs"
        )
    sides = _crop(preprocess, spec, _fixed(height), _fixed(width))
    resize = _resize(preprocess, sides)
    count = 1 if channels == 1 else 3
    return Frame(resize, *sides, channels=count, last=last, scale=_scales(preprocess, spec, count))


def load_image(path: Path | IO[bytes], preprocess: Preprocess, spec: InputSpec) -> Array:
    """Load an image as the input takes it: ``[1, C, H, W]`` or ``[1, H, W, C]`` (no 1 if it has 3 axes).

    Args:
        path: the image file, or its open content.
        preprocess: how to preprocess it.
        spec: the input of the model.

    Raises:
        CalibrationError: the file is no image, is damaged, or does not fit the input.
    """
    return load_placed(path, preprocess, spec)[0]


def load_placed(path: Path | IO[bytes], preprocess: Preprocess, spec: InputSpec) -> tuple[Array, Placement]:
    """Do the same as `load_image`, and tell where the picture lies in the input."""
    frame = frame_for(preprocess, spec)
    image, placement = _framed(_decode(path, frame.channels), frame)
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], frame.channels)
    if preprocess.color == "bgr":
        pixels = pixels[:, :, ::-1]
    array: Array = _scaled(pixels, preprocess) if frame.scale else pixels
    if not frame.last:
        array = array.transpose(2, 0, 1)
    single = spec.shape is not None and len(spec.shape) == 3
    return np.ascontiguousarray(array if single else array[None], dtype=spec.dtype), placement


def _scaled(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Normalise pixels; a grey image uses the averages of mean and std over the three channels."""
    mean, std = (np.array(v, np.float32) for v in (preprocess.mean, preprocess.std))
    if pixels.shape[2] == 1:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    return (pixels.astype(np.float32) - mean) / std


def _channels_last(preprocess: Preprocess, spec: InputSpec) -> bool:
    if preprocess.layout:
        return preprocess.layout == "nhwc"
    if spec.shape is None:
        return False
    return spec.shape[-3] not in (1, 3) and spec.shape[-1] in (1, 3)


def _fixed(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


def _crop(
    p: Preprocess, spec: InputSpec, height: int | None, width: int | None
) -> tuple[int | None, int | None]:
    if "crop" not in p.given or p.crop is None:
        own = p.crop or (None, None)
        return height or own[0], width or own[1]
    if height not in (None, p.crop[0]) or width not in (None, p.crop[1]):
        raise CalibrationError(
            f"crop={p.crop[0]}x{p.crop[1]} does not fit input '{spec.name}' of shape "
            f"{shape_text(spec.shape)}: leave out crop and it follows the model"
        )
    return p.crop


def _resize(p: Preprocess, sides: tuple[int | None, int | None]) -> int | None:
    if "resize" in p.given and p.resize and p.resize < min(s or 0 for s in sides):
        raise CalibrationError(
            f"resize={p.resize} makes images smaller than the crop of {sides[0]}x{sides[1]} "
            "pixels: leave out resize, or give a larger one"
        )
    if p.resize is None or "resize" in p.given or p.crop is None or None in sides:
        return p.resize
    return round(p.resize * min(s for s in sides if s) / min(p.crop))


def _scales(p: Preprocess, spec: InputSpec, channels: int) -> bool:
    if spec.dtype.kind == "f":
        if channels == 1 and any(k in p.given and len(set(getattr(p, k))) > 1 for k in ("mean", "std")):
            raise CalibrationError(
                f"three values of mean or std, but input {spec} has one channel: give one value"
            )
        return True
    if given := sorted(p.given & {"mean", "std"}):
        raise CalibrationError(
            f"input {spec} takes whole pixel values, so {' and '.join(given)} cannot be applied: "
            "leave them out"
        )
    return False


def _decode(path: Path | IO[bytes], channels: int) -> Image.Image:
    """Decode an image, rotate it upright, and convert it to 8-bit RGB or grey."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            return _eight_bit(image).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise CalibrationError(f"{path}: cannot be read as an image ({e}): replace or remove it") from e


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert the modes that Pillow would clip, or warn of, when converting them to RGB."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) / _STEP_16_BIT
        return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _framed(image: Image.Image, frame: Frame) -> tuple[Image.Image, Placement]:
    """Resize (bilinear, antialiased, as torchvision does) and crop the centre."""
    size = _target_size(image.size, frame)
    scale = size[0] / image.width, size[1] / image.height
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    width, height = frame.width or size[0], frame.height or size[1]
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    cropped = image.crop((left, top, left + width, top + height))
    return cropped, Placement(scale, (left, top), (width, height))


def _target_size(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Width and height after resizing: the shorter side as requested, but never less than the crop."""
    short = min(size)
    width, height = (side * (frame.resize or short) // short for side in size)
    crop_width, crop_height = frame.width or 1, frame.height or 1
    if frame.resize is not None and width >= crop_width and height >= crop_height:
        return width, height
    if frame.width is None and frame.height is None:
        return width, height
    factor = max(crop_width / size[0], crop_height / size[1])
    return max(crop_width, int(size[0] * factor)), max(crop_height, int(size[1] * factor))
