"""Pictures: what is asked for, how they are decoded, framed and scaled."""

import warnings

import numpy as np
import pytest
from PIL import Image

from calibrators.data.images import load_image
from calibrators.data.open import open_data
from calibrators.data.preprocess import PRESETS, Preprocess, parse_preprocess
from calibrators.data.samples import InputSpec
from calibrators.errors import CalibrationError

PLAIN = "resize=256,crop=224,mean=127,std=128"


def spec(*shape, dtype="float32"):
    return InputSpec("x", np.dtype(dtype), shape)


NCHW = spec("N", 3, "H", "W")
FIXED = spec("N", 3, 224, 224)


def noise(height, width, seed=0):
    """A smooth picture: one that survives JPEG and resizing."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def save(folder, name="a.png", height=300, width=400, **options):
    path = folder / name
    noise(height, width).save(path, **options)
    return path


def load(path, text, to=NCHW):
    return load_image(path, parse_preprocess(text), to)


def fails(call, *args):
    with pytest.raises(CalibrationError) as caught:
        call(*args)
    return str(caught.value)


# The text


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_by_name(name):
    assert parse_preprocess(name) == PRESETS[name]


def test_keys_change_the_default_or_a_preset():
    alone = parse_preprocess(" resize=64, crop=48x32,mean=127,std=1/2/3,layout=NHWC ")
    assert alone == Preprocess(
        64,
        (48, 32),
        (127, 127, 127),
        (1, 2, 3),
        "nhwc",
        "rgb",
        frozenset({"resize", "crop", "mean", "std", "layout"}),
    )
    assert parse_preprocess("crop=99").mean == PRESETS["imagenet"].mean
    assert parse_preprocess("unit,mean=5").std == (255, 255, 255)


def test_a_presets_statistics_follow_the_colour_order_and_given_ones_do_not():
    p = parse_preprocess("imagenet,color=bgr,std=1/2/3")
    assert p.mean == (103.53, 116.28, 123.675)
    assert p.std == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", ["'imagnet'", "imagenet, unit, signed, raw", "resize, crop, mean"]),
        ("", ["presets", "keys"]),
        ("size=3", ["'size=3'", "resize, crop, mean, std, layout, color"]),
        ("imagenet,unit", ["'unit'", "only in front"]),
        ("crop=0", ["crop=0", "whole number"]),
        ("crop=ax3", ["HEIGHTxWIDTH"]),
        ("resize=1.5", ["resize=1.5"]),
        ("mean=1/2", ["three joined by '/'"]),
        ("mean=nan", ["mean=nan"]),
        ("std=0", ["positive"]),
        ("layout=chw", ["nchw or nhwc"]),
        ("color=gray", ["rgb or bgr"]),
    ],
)
def test_a_wrong_text_lists_what_is_right(text, words):
    message = fails(parse_preprocess, text)
    for word in words:
        assert word.lower() in message.lower()


# Framing and scaling


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp"])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 301), (256, 256), (50, 30)])
@pytest.mark.parametrize("to", [NCHW, FIXED])
def test_equals_pillow_step_by_step(tmp_path, name, height, width, to):
    path = save(tmp_path, name, height, width)
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    size = tuple(256 if side == min(image.size) else int(side * scale + 1e-9) for side in image.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    image = image.crop((left, top, left + 224, top + 224))
    expected = (np.asarray(image, np.float32) - 127) / 128
    found = load(path, PLAIN, to)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected.transpose(2, 0, 1)[None])


def test_statistics_are_per_channel_in_the_order_of_the_colours(tmp_path):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "a.png")
    rgb = load(tmp_path / "a.png", "raw,mean=1/2/3,std=1/2/3")
    bgr = load(tmp_path / "a.png", "raw,mean=1/2/3,std=1/2/3,color=bgr")
    assert rgb[0, :, 0, 0].tolist() == [9, 9, 9]
    assert bgr[0, :, 0, 0].tolist() == [29, 9, pytest.approx(7 / 3)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("raw", [0, 255]), ("unit", [0, 1]), ("signed", [-1, 1]), ("imagenet", [-2.1179, 2.64])],
)
def test_presets_span_their_ranges(tmp_path, text, expected):
    found = []
    for level in (0, 255):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / "a.png")
        found.append(float(load(tmp_path / "a.png", text)[0, 2 if level else 0, 0, 0]))
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "to", "shape"),
    [
        ("imagenet", NCHW, (1, 3, 224, 224)),
        ("imagenet", spec("N", 3, 299, 299), (1, 3, 299, 299)),
        ("imagenet", spec("N", 3, 480, 640), (1, 3, 480, 640)),
        ("imagenet", spec("N", 224, 224, 3), (1, 224, 224, 3)),
        ("imagenet", spec("N", None, None, 3), (1, 224, 224, 3)),
        ("imagenet", spec("N", 28, 28, 1), (1, 28, 28, 1)),
        ("imagenet", spec("N", 1, 28, 28), (1, 1, 28, 28)),
        ("imagenet", spec(None, None, None, None), (1, 3, 224, 224)),
        ("imagenet", spec(3, 32, 32), (3, 32, 32)),
        ("imagenet", spec(32, 48, 3), (32, 48, 3)),
        ("imagenet", InputSpec("x", np.dtype("float32"), None), (1, 3, 224, 224)),
        ("unit", NCHW, (1, 3, 300, 400)),
        ("unit", spec("N", 3, 64, 64), (1, 3, 64, 64)),
        ("unit", spec("N", 3, 32, "W"), (1, 3, 32, 42)),
        ("unit,resize=90", NCHW, (1, 3, 90, 120)),
        ("unit,crop=100x50", NCHW, (1, 3, 100, 50)),
        ("unit,crop=224", FIXED, (1, 3, 224, 224)),
        ("unit,layout=nhwc", spec("N", "H", "W", "C"), (1, 300, 400, 3)),
        ("crop=448", NCHW, (1, 3, 448, 448)),
    ],
)
def test_sizes_and_layouts_follow_the_model(tmp_path, text, to, shape):
    assert load(save(tmp_path), text, to).shape == shape


def test_a_presets_resize_keeps_its_proportion(tmp_path):
    path = save(tmp_path, height=512, width=512)
    as_model = load(path, "imagenet", spec("N", 3, 448, 448))
    explicit = load(path, "imagenet,resize=512,crop=448")
    assert np.array_equal(as_model, explicit)


def test_a_crop_is_always_covered(tmp_path):
    """A tall picture for a wide model: no black borders."""
    Image.new("RGB", (30, 90), (255, 255, 255)).save(tmp_path / "a.png")
    for text in ("unit", "imagenet,mean=0,std=255", "resize=40,mean=0,std=255"):
        found = load(tmp_path / "a.png", text, spec("N", 3, 40, 160))
        assert found.shape == (1, 3, 40, 160)
        assert found.min() == 1


@pytest.mark.parametrize(
    ("text", "to", "words"),
    [
        ("crop=200", FIXED, ["crop=200x200", "[N, 3, 224, 224]"]),
        ("crop=224", spec("N", 3, 224, 192), ["crop=224x224", "[N, 3, 224, 192]"]),
        ("resize=100", FIXED, ["resize=100", "224x224"]),
        ("resize=100,crop=224", NCHW, ["resize=100", "224x224"]),
        ("layout=nhwc", FIXED, ["224 channels", "nhwc"]),
        ("imagenet", spec("N", 64, 56, 56), ["64 channels"]),
        ("mean=1/2/3", spec("N", 1, 28, 28), ["one channel"]),
        ("mean=127", spec("N", 224, 224, 3, dtype="uint8"), ["uint8", "mean"]),
    ],
)
def test_what_does_not_fit_the_model_is_named(tmp_path, text, to, words):
    path = save(tmp_path)
    message = fails(load, path, text, to)
    assert all(word in message for word in words)
    assert fails(lambda: open_data(path, (to,), preprocess=text)) == message, "and before any picture is read"


# Types and modes


def test_integer_inputs_take_pixels(tmp_path):
    found = load(save(tmp_path), "imagenet", spec("N", 224, 224, 3, dtype="uint8"))
    assert found.dtype == np.uint8
    raw = load(tmp_path / "a.png", "raw,resize=256,crop=224", spec("N", 224, 224, 3))
    assert np.array_equal(found, raw)


def test_half_precision_inputs(tmp_path):
    found = load(save(tmp_path), PLAIN, spec("N", 3, 224, 224, dtype="float16"))
    assert found.dtype == np.float16
    assert np.allclose(found, load(tmp_path / "a.png", PLAIN), atol=1e-3)


def test_grey_inputs_take_averaged_statistics(tmp_path):
    Image.new("RGB", (8, 8), (100, 100, 100)).save(tmp_path / "a.png")
    found = load(tmp_path / "a.png", "imagenet", spec("N", 1, 8, 8))
    mean, std = (np.mean(getattr(PRESETS["imagenet"], key)) for key in ("mean", "std"))
    assert np.allclose(found, (100 - mean) / std)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "PA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    level = 255 if mode == "1" else 204
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), level * 257, np.uint16))
    else:
        image = Image.new("RGB", (16, 16), (level,) * 3).convert("P" if mode == "PA" else mode)
    image.save(path, **({"transparency": 0} if mode == "PA" else {}))
    found = load(path, "raw")
    assert found.shape == (1, 3, 16, 16)
    assert np.allclose(found, level, atol=2)


def test_a_transparent_palette_gives_no_warning(tmp_path):
    image = noise(16, 16).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=bytes(range(200)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "a.png", "raw").shape == (1, 3, 16, 16)


def test_pictures_are_turned_upright(tmp_path):
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    assert load(tmp_path / "a.jpg", "raw").shape == (1, 3, 40, 20)


# Files and directories


def test_directory_is_recursive_sorted_and_skips_the_rest(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    for name in ("b.PNG", "a.jpeg", "cats/c.JPG", ".hidden.png", ".thumbnails/d.png"):
        noise(20, 20).save(tmp_path / name)
    (tmp_path / "labels.txt").write_text("cat")
    source = open_data(tmp_path, (FIXED,))
    assert source.total == 3
    found = list(source)
    assert [s.name for s in found] == [str(tmp_path / n) for n in ("a.jpeg", "b.PNG", "cats/c.JPG")]
    assert {s.feeds["x"].shape for s in found} == {(1, 3, 224, 224)}


def test_a_single_picture(tmp_path):
    (sample,) = open_data(save(tmp_path), (FIXED,), preprocess=PLAIN)
    assert np.array_equal(sample.feeds["x"], load(tmp_path / "a.png", PLAIN))


def test_limit_spreads_over_all_pictures(tmp_path):
    for i in range(10):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
    source = open_data(tmp_path, (spec("N", 3, 4, 4),), preprocess="raw", limit=3)
    assert source.total == 3
    assert [int(s.feeds["x"][0, 0, 0, 0]) for s in source] == [0, 3, 6]


def test_damaged_pictures_are_named(tmp_path):
    data = save(tmp_path, "whole.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.bmp").write_bytes(b"")
    png = save(tmp_path, "whole.png").read_bytes()
    (tmp_path / "short.png").write_bytes(png[: len(png) // 2])
    for name in ("short.jpg", "text.png", "empty.bmp", "short.png"):
        assert f"{name}: cannot be read as an image" in fails(load, tmp_path / name, "imagenet")


@pytest.mark.parametrize(
    "inputs",
    [
        (FIXED, spec("N", 3, 8, 8)),
        (spec("N", 128, dtype="int64"),),
        (spec("N", 16, 80),),
        (spec("N", 3, 8, 8, dtype="int8"),),
        (spec("N", 3, 8, 8, dtype="bool"),),
        (),
    ],
)
def test_a_model_that_takes_no_pictures(tmp_path, inputs):
    message = fails(open_data, save(tmp_path), inputs)
    assert "give a .npz file" in message
