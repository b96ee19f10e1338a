"""Tables that are read again, turned into one another, or damaged."""

import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from example_tables import EXAMPLE, PER_CHANNEL, UNSIGNED, exact, same
from hypothesis import assume, example, given, settings

from calibrators.atomic import together
from onnxq.calibration import tables
from onnxq.calibration.tables.parsing import Document
from onnxq.calibration.tables.table import INT8, LARGEST, UINT8, Encoding, NcnnLayer, Table
from onnxq.core.errors import CalibrationError, ConfigError, OnnxqError
from onnxq.core.plan import QuantSpec

READABLE = [name for name, known in tables.FORMATS.items() if known.reader is not None]

HOLD_ALL_GRIDS = ("snpe", "qnn", "mqbench-ppl", "ppq", "json")
"""Formats with a scale and a zero point, of any width, for a tensor or a channel."""

SMALLEST = float(np.finfo(np.float32).tiny)

FLOATS = st.floats(-LARGEST, LARGEST) | st.sampled_from([0.0, 1e-45, -1e-30, SMALLEST, LARGEST])
RANGES = st.tuples(FLOATS, FLOATS).map(lambda ends: Encoding.of_range(min(ends), max(ends)))
SCALES = st.floats(SMALLEST, LARGEST, width=32) | st.sampled_from([SMALLEST, LARGEST, 1.0, 0.1])
BITS = st.sampled_from([4, 8, 16])


@st.composite
def grids(draw, channels=False):
    bits, signed, symmetric = draw(BITS), draw(st.booleans()), draw(st.booleans())
    dtype = ir.DataType[f"{'' if signed else 'U'}INT{bits}"]
    spec = QuantSpec(dtype, symmetric, axis=0 if channels else None)
    qmin, qmax = spec.limits
    zero = (qmin + qmax + 1) // 2 if symmetric else draw(st.integers(qmin, qmax))
    scale = draw(st.lists(SCALES, min_size=2, max_size=4)) if channels else draw(SCALES)
    return exact(spec, scale, zero)


NAMES = st.text(
    st.characters(exclude_characters="\r\n\0:", exclude_categories=["Cs"]), min_size=1, max_size=9
)
ACTIVATIONS = st.dictionaries(NAMES, RANGES | grids(), max_size=4)


def content(name, table):
    path = Path("out.flatbuffers")
    return next(iter(tables.encode(table, path, tables.FORMATS[name]).values()))


def decoded(name, data):
    document = Document(Path("out"), data)
    reader = tables.FORMATS[name].reader
    assert reader.recognises(document)
    return reader.decode(document)


@pytest.mark.parametrize("name", READABLE)
@given(ACTIVATIONS, st.dictionaries(NAMES, grids(channels=True), max_size=3))
@settings(max_examples=30)
@example(dict(EXAMPLE.activations), dict(EXAMPLE.weights))
def test_what_was_read_is_written_as_before(name, activations, weights):
    assume(activations and not activations.keys() & weights.keys())
    data = content(name, Table(activations, weights))
    again = content(name, decoded(name, data))
    assert again == data


@pytest.mark.parametrize("name", HOLD_ALL_GRIDS)
@given(grids(), grids(channels=True))
@settings(max_examples=30)
def test_grids_come_back_exactly(name, activation, weight):
    table = decoded(name, content(name, Table({"x": activation}, {"w": weight})))
    for before, after in ((activation, table.activations["x"]), (weight, table.weights["w"])):
        assert after.params.scale.dtype == np.float32
        if name == "mqbench-ppl":  # it does not tell what is symmetric
            after = Encoding.of_params(before.spec, after.params)
        back = after.exact(before.spec)
        assert np.array_equal(back.scale, before.params.scale)
        assert np.array_equal(back.zero_point, before.params.zero_point)


@given(ACTIVATIONS, st.dictionaries(NAMES, grids(channels=True), max_size=3), RANGES, grids(channels=True))
@settings(max_examples=30)
def test_our_own_format_loses_nothing(activations, weights, data, weight):
    layers = {
        "one": NcnnLayer(data, weight, weight.low.size),
        "two": NcnnLayer(data, UNSIGNED, 6, 3, winograd=True),
    }
    table = Table(activations, weights, layers, ("one", "two"), frozenset(activations))
    back = decoded("json", content("json", table))
    for ours, theirs in ((table.activations, back.activations), (table.weights, back.weights)):
        assert list(ours) == list(theirs)
        assert all(same(ours[name], theirs[name]) for name in ours)
    assert (back.operators, back.absent) == (table.operators, table.absent)
    for name, layer in layers.items():
        other = back.layers[name]
        assert same(layer.data, other.data)
        assert same(layer.weight, other.weight)
        assert (layer.channels, layer.groups, layer.winograd) == (
            other.channels,
            other.groups,
            other.winograd,
        )


@pytest.mark.parametrize("name", ["tensorrt", "mqbench", *HOLD_ALL_GRIDS])
@given(SCALES)
@settings(max_examples=30)
def test_symmetric_scales_come_back_exactly(name, scale):
    before = exact(INT8, scale)
    after = decoded(name, content(name, Table({"x": before}))).activations["x"]
    assert after.exact(INT8).scale == before.params.scale


EXTREMES = {
    "tiny": Encoding.of_range(-1e-45, 1e-45),
    "huge": Encoding.of_range(-LARGEST, LARGEST),
    "zero": Encoding.of_range(0.0, 0.0),
    "above": Encoding.of_range(1.0, 2.0),
    "smallest": exact(INT8, SMALLEST),
    "largest": exact(UINT8, LARGEST, 255),
    "wide": exact(QuantSpec(ir.DataType.UINT16, symmetric=False), 0.1, 1000),
    "narrow": exact(QuantSpec(ir.DataType.INT4, symmetric=True), 0.1),
    "a b/ä\u2028\x85": UNSIGNED,
}


@pytest.mark.parametrize("goal", tables.FORMATS)
@pytest.mark.parametrize("source", READABLE)
def test_every_table_becomes_every_other(source, goal):
    activations = EXTREMES
    table = decoded(source, content(source, Table(activations)))
    if goal == "ncnn":
        with pytest.raises(CalibrationError, match="names layers"):
            content(goal, table)
        return
    back = decoded(goal, content(goal, table))
    assert sorted(back.activations) == sorted(activations)
    for name, encoding in back.activations.items():
        before = float(table.activations[name].amax)
        if before > 130 * SMALLEST:  # smaller ones may have a grid that is wider
            assert 0.99 * before <= encoding.amax <= min(2.01 * before, LARGEST)


@pytest.mark.parametrize("source", READABLE)
@pytest.mark.parametrize("goal", READABLE)
def test_ranges_survive_two_formats(source, goal):
    """Whatever the grids in between, an end moves by no more than their coarsest step."""
    tables_between = decoded(goal, content(goal, decoded(source, content(source, Table({"x": UNSIGNED})))))
    scale = 2.0 if "mqbench-vitis" in (source, goal) else 1.0
    assert 5.8 <= tables_between.activations["x"].amax <= 5.9 * scale


@pytest.mark.parametrize("name", READABLE)
def test_formats_are_known_by_their_content(tmp_path, name):
    for path, data in tables.encode(EXAMPLE, tmp_path / "table", tables.FORMATS[name]).items():
        path.write_bytes(data)
        document = Document(path, data)
        known = [each for each in READABLE if tables.FORMATS[each].reader.recognises(document)]
        assert known == [name]
        assert EXAMPLE.activations.keys() <= tables.read(path).activations.keys()


def test_ends_that_only_onnxruntimes_json_holds(tmp_path):
    path = tmp_path / "calibration.json"
    tables.write(tables.encode(EXAMPLE, path, tables.FORMATS["ort"]))
    assert tables.read(path).activations["ä"].low == -8.0
    assert tables.read(path).activations["ä"].high == 1.0
    assert tables.read(tmp_path / "calibration.flatbuffers").activations["ä"].high == 8.0


def test_an_encoding_without_a_scale_comes_from_its_ends():
    data = (
        b'{"activation_encodings": {"x": [{"bitwidth": 8, "min": -1.0, "max": 1.55}]}, "param_encodings": {}}'
    )
    params = decoded("mqbench-snpe", data).activations["x"].exact(UINT8)
    assert (float(params.scale), int(params.zero_point)) == (pytest.approx(0.01), 100)


def test_float_encodings_are_passed_over_and_named(caplog):
    entries = (
        '{"name":"f","dtype":"FLOAT","enc_type":"PER_TENSOR","bw":16},'
        '{"name":"b","dtype":"INT","enc_type":"PER_BLOCK","bw":4,"block_size":2,"scale":[1,2],"offset":[-8,-8]},'
        '{"name":"x","dtype":"INT","enc_type":"PER_TENSOR","bw":16,"is_sym":false,"scale":[0.5],"offset":[-7]}'
    )
    text = '{"version":"1.0.0","activation_encodings":[' + entries + '],"param_encodings":[]}'
    table = decoded("qnn", text.encode())
    assert list(table.activations) == ["x"]
    assert table.activations["x"].spec.dtype == ir.DataType.UINT16
    assert "2 encodings are ignored, because they are float or have one scale per block: f, b" in caplog.text


def test_strictly_symmetric_encodings_count_from_one_higher():
    entry = (
        '{"bitwidth":8,"dtype":"int","is_symmetric":"True","min":-1.27,"max":1.27,"offset":-127,"scale":0.01}'
    )
    data = '{"version":"0.6.1","activation_encodings":{"x":[' + entry + ']},"param_encodings":{}}'
    encoding = decoded("snpe", data.encode()).activations["x"]
    assert encoding.high == pytest.approx(1.27)
    assert encoding.exact(INT8).zero_point == 0


# --- what cannot be had -------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_damaged_files_are_one_clear_error(tmp_path, name):
    """Cut off anywhere, or a byte changed: an error that names the file, or a table that can be read."""
    path = tmp_path / "table"
    data = content(name, EXAMPLE)
    rng = np.random.default_rng(0)
    cuts = [data[:size] for size in rng.integers(0, len(data), 60)]
    flips = [
        data[:at] + bytes([rng.integers(256)]) + data[at + 1 :] for at in rng.integers(0, len(data), 300)
    ]
    failures = []
    for damaged in (*cuts, *flips):
        path.write_bytes(damaged)
        try:
            tables.read(path)
        except OnnxqError as error:
            failures.append(str(error))
    assert len(failures) > 20
    assert all(str(path) in failure for failure in failures)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not a calibration table"),
        (b"\x00\x01\x02\x03" * 40, "not a calibration table"),
        (b"hello world\n", "not a calibration table"),
        (b"[1, 2]", "not a calibration table"),
        (b"[" * 100_000, "not a calibration table"),
        (b'{"a": 1}', "not a calibration table"),
        (b"conv_param_0 1.000000 2.000000 \nconv 3.000000 \n", "they name layers, not tensors"),
        (b"TRT-1-X\nx 3c010204\n", "damaged tensorrt table: "),
        (b"TRT-1-X\nx: 7fc00000\n", "damaged tensorrt table: a scale of nan"),
        (b"TRT-1-X\nx: bf800000\n", "damaged tensorrt table: a scale of -1"),
        (b"x nan\nb 1.0\n", "not a calibration table"),
        (b"x inf\n", "damaged ort table: [-inf, inf]"),
        (b'{"quant_info": {"x": {"quant_flag": true}}}', "damaged ppq table: 'scale' is missing"),
        (
            b'{"tensorrt": {"blob_range": {"x": "6.4"}}}',
            "damaged mqbench table: expected a number, got '6.4'",
        ),
        (
            b'{"version": "0.6.1", "activation_encodings": {"x": [{"bitwidth": 999999999999, "scale": 1, "offset": 0}]}, '
            b'"param_encodings": {}}',
            "integers of 999999999999 bits",
        ),
        (
            b'{"format": "onnxq calibration table", "version": 1, "weights": {}, "layers": {}, "activations": '
            b'{"x": {"type": "int8", "symmetric": true, "reduce_bits": -999999999, "scale": 1, "zero_point": 0}}}',
            "reduce_bits -999999999 or axis",
        ),
        (b'{"tensorrt": 3}', "damaged mqbench table: expected an object, got int"),
        (b'{"format": "onnxq calibration table", "version": 2}', "it has version 2, expected 1"),
    ],
)
def test_what_is_no_table(tmp_path, data, word):
    path = tmp_path / "table"
    path.write_bytes(data)
    with pytest.raises(CalibrationError) as caught:
        tables.read(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_format_is_documented():
    text = (Path(__file__).parents[3] / "docs" / "tables.md").read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in tables.FORMATS)
    endings = [suffix for known in tables.FORMATS.values() for suffix in known.suffixes]
    assert all(f"`{ending}`" in text for ending in endings)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CalibrationError, match=f"{path}.*cannot be read"):
            tables.read(path)


@pytest.mark.parametrize(
    ("name", "bad"), [("tensorrt", "a:0"), ("tensorrt", "a\nb"), ("ort", "a\nb"), ("ncnn", "a b")]
)
def test_names_that_a_format_cannot_hold(name, bad):
    table = Table({bad: UNSIGNED}, layers={bad: NcnnLayer(UNSIGNED, UNSIGNED, 1)})
    with pytest.raises(CalibrationError, match=r"in its name, which .* tables cannot hold"):
        content(name, table)


@pytest.mark.parametrize("name", sorted({*tables.FORMATS} - {"tensorrt", "ort", "ncnn"}))
def test_other_formats_take_any_name(name):
    assert content(name, Table({"a:0 b\nc": UNSIGNED}))


def test_layers_beyond_six_decimals_are_left_out_and_named(caplog):
    huge = Encoding.of_range(-1e12, 1e12)
    table = Table(layers={"huge": NcnnLayer(huge, UNSIGNED, 1), "fine": NcnnLayer(UNSIGNED, UNSIGNED, 1)})
    assert b"huge" not in content("ncnn", table)
    assert b"fine " in content("ncnn", table)
    assert "1 layers" in caplog.text
    assert "huge" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tensorrt", ["no weights", "symmetric"]),
        ("mqbench-vitis", ["no weights", "symmetric", "powers of two"]),
        ("mqbench-snpe", ["no weights"]),
        ("qnn", []),
        ("json", []),
    ],
)
def test_what_is_lost_is_said(caplog, name, told):
    content(name, EXAMPLE)
    assert bool(caplog.text) == bool(told)
    assert all(word in caplog.text for word in told)


def test_nothing_is_said_where_nothing_is_lost(caplog):
    content("tensorrt", Table({"x": exact(INT8, 0.3)}))
    content("mqbench-vitis", Table({"x": exact(INT8, 0.25)}))
    assert not caplog.text


def test_other_programs_are_not_told_of_tensors_that_the_float_model_lacks(caplog):
    table = Table(
        {"x": UNSIGNED, "x_pooled": UNSIGNED}, {"w": exact(PER_CHANNEL, [1, 2])}, absent={"x_pooled", "w"}
    )
    assert b"pooled" not in content("tensorrt", table)
    assert "x_pooled" in caplog.text
    assert '"w"' not in content("snpe", table).decode()
    assert decoded("json", content("json", table)).absent == {"x_pooled", "w"}


def test_formats_by_the_name_of_the_file():
    endings = {"a.cache": "tensorrt", "a.flatbuffers": "ort", "a.table": "ncnn", "a.encodings": "snpe"}
    for name, expected in {
        **endings,
        "a_clip_ranges.json": "mqbench",
        "a.json": "json",
        "A.JSON": "json",
    }.items():
        assert tables.format_for(Path(name)).name == expected
    assert tables.format_for(Path("a.json"), "ppq").name == "ppq"
    with pytest.raises(ConfigError, match=r"a\.txt.*give one of tensorrt, ort"):
        tables.format_for(Path("a.txt"))
    with pytest.raises(ConfigError, match="unknown table format 'trt'; valid formats: tensorrt"):
        tables.format_for(Path("a.txt"), "trt")


def test_a_failure_leaves_nothing_behind(tmp_path):
    (tmp_path / "old").write_text("old")
    files = {tmp_path / "old": b"new", tmp_path / "b": b"new"}

    def fail():
        with together():
            tables.write(files)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(OnnxqError, match="cannot be written"):
        tables.write({tmp_path / "old": b"new", tmp_path / "no folder" / "b": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_ncnn_is_only_written(tmp_path):
    path = tmp_path / "a.table"
    path.write_bytes(content("ncnn", EXAMPLE))
    with pytest.raises(ConfigError, match="only be written"):
        tables.read(path, "ncnn")


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (0.0, 1e39), ([], [])])
def test_ranges_that_are_none(ends):
    with pytest.raises(ValueError, match="range"):
        Encoding.of_range(*ends)
