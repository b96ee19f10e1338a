"""Tables out of the flow and into it: the names that they use, the ranges that they bring back."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import save_data, save_model
from example_tables import UNSIGNED, exact
from graphs import feeds_for, parse

import zoo
from onnxq.calibration import tables
from onnxq.calibration.qparams import from_table
from onnxq.calibration.tables.table import INT8, UINT8, Encoding, Table
from onnxq.cli import commands
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError, ModelError
from onnxq.core.numerics import UNBOUNDED, params_from_range
from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.graph.passes import simplify
from onnxq.pipelines.static import quantize_static

TEXT = """g (float[N,3,8,8] x) => (float[N,4] y)
<float[8,3,3,3] w, float[8] b, float[8] s, float[8] o, float[8] m, float[8] var, float[8,1,3,3] d, float[8,4] v> {
  c = Conv<pads=[1,1,1,1]>(x, w, b)  n = BatchNormalization(c, s, o, m, var)  r = Relu(n)
  [depthwise] e = Conv<pads=[1,1,1,1], group=8, strides=[2,2]>(r, d)  t = Relu(e)
  p = GlobalAveragePool(t)  f = Flatten(p)
  y = MatMul(f, v) }"""

LOSSLESS = {
    "onnxruntime": ("snpe", "qnn", "mqbench-snpe", "mqbench-ppl", "ppq", "json"),
    "tensorrt": ("tensorrt", "ort", "mqbench", "snpe", "qnn", "mqbench-ppl", "ppq", "json"),
}
"""Formats that hold all that a target decides of activations."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model ``m.onnx`` and data ``d.npz``."""
    save_model(tmp_path / "m.onnx", TEXT)
    save_data(tmp_path / "d.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantized(output="o.onnx", **options):
    """Without corrections, which a table does not hold: it is for the float model."""
    given = {} if "from_table" in options else {"data": "d.npz", "correct": "none"}
    return quantize_static("m.onnx", output, config=QuantConfig(**given, **options))


@pytest.mark.parametrize("target", LOSSLESS)
def test_a_table_gives_the_model_that_it_came_from(folder, target):
    names = LOSSLESS[target]
    files = tuple(folder / f"t_{name}" for name in names)
    quantized(target=target, table=files, table_format=names)
    for file in files:
        result = quantized("again.onnx", target=target, from_table=file)
        assert (folder / "again.onnx").read_bytes() == (folder / "o.onnx").read_bytes(), file
        assert result.statistics is None
        assert result.plan.points


def test_a_table_of_ranges_for_another_number_format(folder):
    """Symmetric ranges of another program make an asymmetric model, with the bounds of a Relu kept."""
    quantized(save_statistics="s.npz")
    assert run("table", "s.npz", "t.cache") == 0
    plan = quantized(from_table="t.cache").plan
    assert plan.params["x"].zero_point in (127, 128)
    assert plan.params["r"].zero_point == 0


def test_tensors_that_a_table_lacks_are_counted(folder):
    quantized(table="t.json")
    tree = json.loads((folder / "t.json").read_text())
    for name in ("r", "t"):
        del tree["activations"][name]
    (folder / "t.json").write_text(json.dumps(tree))
    with pytest.raises(CalibrationError, match=r"the table lacks tensor 'r', and 2 of \d in all"):
        quantized("p.onnx", from_table="t.json")
    assert not (folder / "p.onnx").exists()


def group(**changes):
    given = {"name": "a", "spec": UINT8, "tensors": ("a", "b", "c"), "observed_tensors": ("a", "b")}
    return Group(**{**given, **changes})


def params_of(table, group):
    plan = QuantPlan("onnxruntime", (), (), {"a": group}, {}, {})
    return from_table(table, plan)(group)


def test_tensors_of_a_group_that_differ_are_joined():
    table = Table({"a": exact(UINT8, 0.5, 0), "b": Encoding.of_range(-1, 1), "c": Encoding.of_range(-999, 0)})
    for bounds in (UNBOUNDED, (0.0, 6.0)):
        found, expected = (
            params_of(table, group(bounds=bounds)),
            params_from_range(-1.0, 127.5, UINT8, bounds),
        )
        assert (found.scale, found.zero_point) == (expected.scale, expected.zero_point)


def test_grids_beyond_the_bounds_are_made_anew():
    """A runtime drops a Relu in front of a grid without negative numbers only."""
    table = Table({"a": UNSIGNED})
    assert params_of(table, group()).zero_point == 7
    assert params_of(table, group(bounds=(0.0, np.inf))).zero_point == 0
    assert params_of(Table({"a": exact(UINT8, 0.5)}), group(bounds=(0.0, np.inf))).scale == 0.5
    assert params_of(Table({"a": exact(INT8, 0.5)}), group(spec=INT8, bounds=(0.0, np.inf))).scale == 0.5


def test_any_tensor_of_a_group_will_do():
    found = params_of(Table({"c": UNSIGNED}), group())
    assert (found.scale, found.zero_point) == (UNSIGNED.params.scale, 7)


def test_channels_are_joined():
    per_channel = exact(QuantSpec(ir.DataType.INT8, symmetric=True, axis=1), [0.25, 1.0])
    assert params_of(Table({"a": per_channel}), group(spec=INT8)).scale == 1.0


# --- names ----------------------------------------------------------------------------------------


def original_names():
    graph = onnx.load("m.onnx").graph
    return {name for node in graph.node for name in (*node.input, *node.output)}


def test_tables_for_others_use_the_names_of_the_float_model(folder, caplog):
    result = quantized(table=("t.encodings", "t.json"))
    tree = json.loads((folder / "t.encodings").read_text())
    assert tree["activation_encodings"].keys() <= original_names()
    assert set(tree["param_encodings"]) == {"d", "v"}  # w holds the BatchNormalization now
    assert result.table.absent == {"w"}
    assert "t.encodings: tensors that the float model does not have" in caplog.text
    assert "w" in tables.read("t.json").weights


GRAPHS = {
    "reduced": """g (float[N,3,8,8] x) => (float[N,4] y) <float[8,3,3,3] w, float[8,4] v>
        { c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  p = ReduceMean<axes=[2,3], keepdims=0>(r)
          y = MatMul(p, v) }""",
    "arithmetic": """g (float[N,3,8,8] x) => (float[N,8,8,8] y) <float[8,3,3,3] w, float[8,8,1,1] v>
        { two = Constant<value_float=2.0>()  a = Mul(x, two)  i = Identity(a)
          c = Conv<pads=[1,1,1,1]>(i, w)  d = Add(c, two)  q = Conv(d, v)  z = Sum(q, d, c)  y = Relu(z) }""",
    "gemm": """g (float[2,6] x) => (float[2,3] y) <float[6,5] w, float[5] b, float[5,3] v, float[3] k>
        { m = MatMul(x, w)  a = Add(m, b)  r = Relu(a)  n = Gemm<alpha=2.0>(r, v)  y = Add(n, k) }""",
    "pad": """g (float[N,3,8,8] x) => (float[N,8,4,4] y) <float[8,3,3,3] w, float[8] s, float[8] o, float[8] m,
        float[8] var> { p = Constant<value_ints=[0,0,1,1,0,0,1,1]>()  q = Pad(x, p)
          c = Conv<strides=[2,2]>(q, w)  y = BatchNormalization(c, s, o, m, var) }""",
    "shared": TEXT,
}


def values(model, feeds, names):
    """What the tensors of these names hold, in a run."""
    import onnxruntime as ort

    proto = ir.to_proto(model)
    known = {output.name for output in proto.graph.output}
    extra = [name for name in names if name not in known]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in extra)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), feeds), strict=True))


@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_what_keeps_its_name_keeps_its_values(text):
    """Else a table would give a tensor of the float model the range of another one."""
    check_names(parse(text))


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_what_keeps_its_name_keeps_its_values_in_an_architecture(name):
    check_names(ir.load(zoo.light(name)))


def check_names(model):
    simple = simplify(model)
    feeds = {n: array for n, array in feeds_for(model).items() if n not in model.graph.initializers}
    outputs = [{o.name for node in each.graph for o in node.outputs} for each in (model, simple)]
    shared = sorted(name for name in outputs[0] & outputs[1] if name)
    assert shared
    before, after = values(model, feeds, shared), values(simple, feeds, shared)
    for name in shared:
        scale = float(np.abs(before[name]).max()) or 1.0
        np.testing.assert_allclose(after[name], before[name], atol=1e-4 * scale, rtol=1e-3, err_msg=name)


def test_layers_for_ncnn(folder):
    result = quantized(table="t.table")
    layers = result.table.layers
    assert list(layers) == ["c", "depthwise", "y"]  # a node without a name goes by its output
    assert [layer.channels for layer in layers.values()] == [8, 8, 4]
    assert [layer.groups for layer in layers.values()] == [1, 8, 1]
    assert [layer.winograd for layer in layers.values()] == [True, False, False]
    lines = (folder / "t.table").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines[:3]] == ["c_param_0", "depthwise_param_0", "y_param_0"]
    scale = result.plan.params["r"].scale
    assert float(lines[4].split(" ")[1]) == pytest.approx(127 / (255 * scale), rel=1e-5)
    folded = result.plan.params[next(p.group for p in result.plan.points if p.tensor == "w")].scale
    assert [float(f) for f in lines[0].split(" ")[1:-1]] == pytest.approx(31 / (127 * folded), rel=1e-4)


@pytest.mark.parametrize("weight", ["int4", "uint4"])
def test_tables_of_4_bit_weights(folder, weight):
    names = LOSSLESS["onnxruntime"]
    files = tuple(folder / f"t_{name}" for name in names)
    result = quantized(weight=weight, table=files, table_format=names, floor=0)
    params = result.plan.params["d"]
    for name in ("snpe", "qnn", "mqbench-ppl", "ppq", "json"):
        encoding = tables.read(folder / f"t_{name}").weights["d"]
        assert encoding.params.scale.astype(np.float32).tolist() == params.scale.tolist(), name
        assert encoding.spec.dtype.bitwidth == 4
    for name in names:
        quantized("again.onnx", weight=weight, from_table=folder / f"t_{name}")
        assert (folder / "again.onnx").read_bytes() == (folder / "o.onnx").read_bytes(), name


def test_programs_with_8_bit_weights_need_not_clip_what_4_bits_do(folder):
    layers = quantized(weight="int4", table="t.table").table.layers
    weight = quantized("p.onnx").plan.params["d"].scale * 127
    (factors,) = [x for x in (folder / "t.table").read_text().splitlines() if x.startswith("depthwise_param")]
    assert [127 / float(f) for f in factors.split(" ")[1:-1]] == pytest.approx(weight, rel=0.2)
    assert layers["depthwise"].weight.spec is None


def test_weights_in_blocks_stand_in_no_table(folder, caplog):
    save_model(
        folder / "m.onnx",
        "g (float[N,64] x) => (float[N,8] y) <float[64,32] a, float[8,32] b> {"
        " h = MatMul (x, a) i = Tanh (h) y = Gemm <transB=1> (i, b) }",
    )
    save_data(folder / "d.npz", x=np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32))
    result = quantized(weight="int4", block_size=32, table="t.json", floor=0)
    assert result.plan.points[0].spec.block_size == 32
    assert "no weights with one scale per block, so these are left out: a" in caplog.text
    assert set(tables.read(folder / "t.json").weights) == {"b"}


# --- writing with the model -----------------------------------------------------------------------


def test_names_that_a_table_cannot_hold_are_found_before_the_work(folder):
    model = onnx.load("m.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["a:0" if name == "r" else name for name in names]
    onnx.save(model, "m.onnx")
    with pytest.raises(CalibrationError, match=r"t\.cache: tensor 'a:0' has ':' in its name"):
        quantize_static("m.onnx", "o.onnx", "there is no data", QuantConfig(table="t.cache"))
    quantize_static("m.onnx", "o.onnx", "d.npz", QuantConfig(table="t.json"))


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"table": "t.txt"}, ConfigError, "does not imply a table format"),
        ({"table": "m.onnx", "table_format": "json"}, ModelError, "would overwrite m.onnx"),
        ({"table": "no folder/t.json"}, ModelError, "there is no directory"),
        ({"table": ("t.json", "t.json")}, ModelError, "would overwrite t.json"),
        ({"table": ("o.json", "o.flatbuffers")}, ModelError, "would overwrite o.json"),
    ],
)
def test_tables_that_cannot_be_written_are_found_before_the_work(folder, options, error, word):
    with pytest.raises(error, match=word):
        quantize_static("m.onnx", "o.onnx", "there is no data", QuantConfig(**options))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"table": ("a.json", "b.cache"), "table_format": "ppq"}, "1 formats for 2 tables"),
        ({"table_format": "ppq"}, "1 formats for 0 tables"),
        ({"table": "a.json", "table_format": "ppx"}, "table_format: expected 'tensorrt'"),
    ],
)
def test_formats_that_do_not_fit_the_tables(options, word):
    with pytest.raises(ConfigError, match=word):
        QuantConfig(**options)


def test_the_options_list_the_formats():
    field = QuantConfig.model_fields["table_format"].description
    assert all(name in field for name in tables.FORMATS)
    assert QuantConfig(table=["t"] * len(tables.FORMATS), table_format=list(tables.FORMATS)).table_format


def test_no_table_without_the_model(folder, monkeypatch):
    (folder / "t.json").write_text("as it was")
    monkeypatch.setattr("onnxq.verify.accuracy.AccuracyEvaluator.evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantized(table=("t.json", "calibration.flatbuffers"))
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "m.onnx", "t.json"]
    assert (folder / "t.json").read_text() == "as it was"


def test_the_result_has_the_table(folder):
    assert set(quantized().table.activations) >= {"x", "r", "t"}


# --- onnxq table ----------------------------------------------------------------------------------


def run(*arguments):
    return commands.main([*map(str, arguments)])


def test_statistics_become_a_table_of_any_format(folder, capsys):
    quantized(save_statistics="s.npz")
    for name in tables.FORMATS:
        code = run("table", "s.npz", f"t.{name}", "--format", name)
        assert (code, name) == (int(name == "ncnn"), name)
    assert "names layers" in capsys.readouterr().err
    assert {"x", "r", "t"} <= set(tables.read("t.tensorrt").activations)


def test_the_method_chooses_ranges_of_statistics(folder):
    quantized(save_statistics="s.npz")
    amax = {}
    for method in ("minmax", "percentile"):
        assert run("table", "s.npz", "t.json", "--method", method, "--percentile", "90") == 0
        amax[method] = tables.read("t.json").activations["x"].amax
    assert amax["percentile"] < 0.8 * amax["minmax"]
    samples = np.load("d.npz")["x"]
    assert amax["minmax"] == pytest.approx(np.abs(samples).max(), rel=0.3)


def test_a_table_becomes_another_one(folder, capsys):
    quantized(target="tensorrt", table=("t.json", "t.cache"))
    assert run("table", "t.json", "again.cache") == 0
    assert (folder / "again.cache").read_bytes() == (folder / "t.cache").read_bytes()
    assert run("table", "t.cache", folder, "--format", "ort") == 0
    assert (folder / "calibration.flatbuffers").exists()
    assert run("table", "t.json", "t.table") == 0  # it was written with the model, so it knows layers


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("t.json", "t.x"), 2, "does not imply a table format"),
        (("t.json", "t.x", "--format", "trt"), 2, "unknown table format 'trt'"),
        (("t.json", "u.json", "--method", "mse"), 2, "applies to statistics only"),
        (("t.json", "t.json"), 1, "would overwrite t.json"),
        (("none", "u.json"), 1, "none: the table cannot be read"),
        (("m.onnx", "u.json"), 1, "m.onnx: not a calibration table"),
        (("d.npz", "u.json"), 1, "d.npz does not hold calibration statistics"),
        (("t.json", "nowhere/u.json"), 1, "there is no directory"),
    ],
)
def test_tables_that_cannot_be_made(folder, capsys, arguments, code, word):
    tables.write(tables.encode(Table({"x": UNSIGNED}), folder / "t.json", tables.FORMATS["json"]))
    assert run("table", *arguments) == code
    err = capsys.readouterr().err
    assert word in err
    assert err.count("\n") == 1
    assert not (folder / "u.json").exists()
