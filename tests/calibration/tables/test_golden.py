"""Every format byte for byte. ``ONNXQ_GOLDEN=write`` writes the golden files anew, after a change that is meant."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from example_tables import EXAMPLE, SYMMETRIC, exact

from onnxq.calibration import tables
from onnxq.calibration.tables import onnxruntime
from onnxq.calibration.tables.parsing import Document
from onnxq.calibration.tables.table import INT8, Encoding, NcnnLayer, Table

GOLDEN = Path(__file__).parent / "golden"


def content(name, table=EXAMPLE, path="out"):
    return next(iter(tables.encode(table, Path(path), tables.FORMATS[name]).values()))


@pytest.mark.parametrize("name", tables.FORMATS)
def test_golden(name):
    path = GOLDEN / (onnxruntime.NAME if name == "ort" else name)
    files = tables.encode(EXAMPLE, path, tables.FORMATS[name])
    if os.environ.get("ONNXQ_GOLDEN") == "write":
        tables.write(files)
    assert {path: path.read_bytes() for path in files} == files


def test_tensorrt_scales_are_bits_of_floats():
    ranges = {"one": (-1.0, 1.0), "low": (-6.35, 0.0), "x": (0.0, 0.25)}
    table = Table({name: Encoding.of_range(*ends) for name, ends in ranges.items()})
    assert content("tensorrt", table) == (
        b"TRT-8205-EntropyCalibration2\none: 3c010204\nlow: 3d4ccccd\nx: 3b010204\n"
    )
    assert content("tensorrt", Table({"input": exact(INT8, np.float32(1 / 254))})).endswith(
        b"input: 3b810204\n"
    )


def test_encodings_as_in_the_specification():
    table = Table({"x": SYMMETRIC})
    assert content("snpe", table) == (
        b'{"version":"0.6.1","activation_encodings":{"x":[{"bitwidth":8,"dtype":"int","is_symmetric":"True",'
        b'"min":-3.2,"max":3.175,"offset":-128,"scale":0.025}]},"param_encodings":{}}'
    )
    assert content("qnn", table) == (
        b'{"version":"1.0.0","activation_encodings":[{"name":"x","dtype":"INT","enc_type":"PER_TENSOR",'
        b'"is_sym":true,"bw":8,"scale":[0.025],"offset":[-128.0]}],"param_encodings":[]}'
    )


def test_ncnn_lines_end_in_a_blank_and_winograd_has_six_bits():
    plain = NcnnLayer(exact(INT8, 0.5), exact(INT8, [0.25, 1.0]), channels=2)
    winograd = NcnnLayer(exact(INT8, 2.0), exact(INT8, [0.25, 1.0]), channels=2, winograd=True)
    assert content("ncnn", Table(layers={"c": plain, "d": winograd})) == (
        b"c_param_0 4.000000 1.000000 \nd_param_0 0.976378 0.244094 \nc 2.000000 \nd 0.500000 \n"
    )


def test_ncnn_has_one_factor_a_group_and_one_for_each_channel():
    layers = {
        "depthwise": NcnnLayer(SYMMETRIC, exact(INT8, [0.5, 0.25, 0.125, 1.0]), channels=4, groups=2),
        "whole": NcnnLayer(SYMMETRIC, exact(INT8, 0.5), channels=3),
    }
    text = content("ncnn", Table(layers=layers)).decode()
    assert text.startswith(
        "depthwise_param_0 2.000000 1.000000 \nwhole_param_0 2.000000 2.000000 2.000000 \n"
    )


def test_mqbench_files_as_in_the_specification():
    table = Table({"x": exact(INT8, 0.0625)})
    value = {name: json.loads(content(f"mqbench{name}", table)) for name in ("", "-vitis", "-ppl")}
    assert value[""] == {"tensorrt": {"blob_range": {"x": 8.0}}}
    assert value["-vitis"] == {"vitis": {"x": {"scale": 0.0625}}}
    fields = {"step": 0.0625, "zero_point": 0, "min": -8.0, "max": 7.9375, "bit": 8, "type": "biased"}
    assert value["-ppl"] == {"ppl": {"x": fields}}


@pytest.mark.parametrize("value", ["json", "cache", "flatbuffers"])
def test_the_files_are_those_of_onnxruntime(tmp_path, value):
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    ranges = {"b x": (0.1, 6.35), "a": (0.0, 1.0), "ä:0": (0.0, 3e-7)}
    narrow = {name: tuple(map(np.float32, ends)) for name, ends in ranges.items()}
    data = calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, narrow)
    from onnxruntime.quantization.quant_utils import write_calibration_table

    write_calibration_table(data.data, str(tmp_path))
    table = Table({name: Encoding.of_range(*ends) for name, ends in narrow.items()})
    ours = tables.encode(table, tmp_path / onnxruntime.NAME, tables.FORMATS["ort"])
    path = tmp_path / f"calibration.{value}"
    assert ours[path] == path.read_bytes()


def test_onnxruntime_reads_our_flatbuffer():
    module = pytest.importorskip("onnxruntime.quantization.CalTableFlatBuffers.TrtTable")
    theirs = module.TrtTable.GetRootAs(content("ort", path=onnxruntime.NAME))
    entries = [theirs.Dict(index) for index in range(theirs.DictLength())]
    found = {entry.Key().decode(): float(entry.Value()) for entry in entries}
    assert found == {name: each.amax for name, each in EXAMPLE.activations.items()}
    assert found["ä"] == 8.0  # of [-8, 1], where the peer would write 1


def test_values_that_a_provider_cannot_read_are_not_written():
    tiny = Table({"x": Encoding.of_range(-1e-40, 1e-42)})
    assert onnxruntime._from_flatbuffer(content("ort", tiny)) == [("x", "0.0")]


def test_the_three_names_of_onnxruntime(tmp_path):
    names = [path.name for path in onnxruntime.files(tmp_path)]
    assert names == ["calibration.flatbuffers", "calibration.json", "calibration.cache"]
    assert onnxruntime.files(Path("t.json")) == onnxruntime.files(Path("t.flatbuffers"))
    assert onnxruntime.files(Path("t"))[0] == Path("t")


def test_a_cache_of_tensorrt_itself():
    text = b"TRT-7103-MinMaxCalibration\r\ndata:0: 3c010204\r\nempty: 00000000\r\n"
    table = tables.FORMATS["tensorrt"].reader.decode(Document(Path("x"), text))
    assert table.activations["data:0"].high == pytest.approx(1.0)
    assert table.activations["empty"].amax == 0
