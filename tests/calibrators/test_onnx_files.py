"""Models that onnx_ir alone does not read or write: sparse tensors, maps, external data of functions."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

from calibrators.errors import CalibrationError
from calibrators.onnx_files import UnusableModelError, from_proto, read_model, save_model, to_proto
from calibrators.session import open_session
from onnxq.core.errors import ModelError
from onnxq.graph.files import files_of, load, write
from onnxq.graph.passes import simplify

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((6, 5)).astype(np.float32)
WEIGHTS[np.abs(WEIGHTS) < 0.5] = 0
X = RNG.standard_normal((3, 6)).astype(np.float32)


def model_of(nodes, initializers=(), functions=(), outputs=("y",)):
    """A model that reads x [N, 6] and gives tensors; ``w`` [6, 5] comes from what is given."""
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 5]) for name in outputs]
    source = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6])
    graph = helper.make_graph(list(nodes), "g", [source], infos, list(initializers))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=imports, ir_version=9)


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"], "product")


def saved(proto, path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def outputs(model):
    return open_session(model, threads=1).run(None, {"x": X})


# --- sparse tensors ----------------------------------------------------------------------------------


def sparse(linear=True, index=np.int64, name="w"):
    at = np.flatnonzero(WEIGHTS) if linear else np.argwhere(WEIGHTS)
    values = numpy_helper.from_array(WEIGHTS[WEIGHTS != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(at.astype(index), "at"), [6, 5])


def sparse_initializer(tensor):
    model = model_of([PRODUCT])
    model.graph.sparse_initializer.append(tensor)
    return model


def sparse_constant(tensor):
    return model_of([helper.make_node("Constant", [], ["w"], sparse_value=tensor), PRODUCT])


def sparse_in_function(tensor):
    body = [helper.make_node("Constant", [], ["w"], sparse_value=tensor), PRODUCT]
    function = helper.make_function("local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    return model_of([helper.make_node("F", ["x"], ["y"], "call", domain="local")], functions=[function])


def branches(*nodes, **attributes):
    """A model whose If has the nodes in both of its branches."""
    info = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5])
    branch = helper.make_graph(list(nodes), "branch", [], [info])
    for name, content in attributes.items():
        getattr(branch, name).append(content)
    yes = numpy_helper.from_array(np.array(True), "yes")
    choice = helper.make_node("If", ["yes"], ["y"], "choice", then_branch=branch, else_branch=branch)
    return model_of([choice], [yes])


def sparse_in_branch(tensor):
    return branches(PRODUCT, sparse_initializer=tensor)


PLACES = [sparse_initializer, sparse_constant, sparse_in_function, sparse_in_branch]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("linear", [True, False])
def test_sparse_weights_become_plain(tmp_path, place, linear):
    path = saved(place(sparse(linear)), tmp_path / "m.onnx")
    simple = simplify(load(path))
    weights = [v.const_value.numpy() for v in simple.graph.initializers.values() if v.shape == [6, 5]]
    np.testing.assert_array_equal(weights[0], WEIGHTS)
    np.testing.assert_allclose(outputs(simple)[0], X @ WEIGHTS, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_external_data_of_sparse_weights(tmp_path, place, inside):
    tensor = sparse()
    where = tmp_path / "models" if inside else tmp_path
    path = tmp_path / "models" / "m.onnx"
    path.parent.mkdir()
    (where / "w.bin").write_bytes(tensor.values.raw_data)
    set_external_data(tensor.values, "w.bin" if inside else str(tmp_path / "w.bin"))
    tensor.values.ClearField("raw_data")
    saved(place(tensor), path)
    if inside:
        np.testing.assert_allclose(outputs(load(path))[0], X @ WEIGHTS, rtol=1e-5, atol=1e-6)
        assert files_of(path) == (path, path.parent / "w.bin")
    else:
        with pytest.raises(ModelError, match=r"m\.onnx: sparse tensor 'w' cannot be used.*outside"):
            load(path)


def test_no_sparse_weights_and_none_of_a_kind():
    empty = helper.make_sparse_tensor(
        numpy_helper.from_array(np.zeros(0, np.float32), "w"),
        numpy_helper.from_array(np.zeros(0, np.int64), "at"),
        [6, 5],
    )
    model = from_proto(sparse_initializer(empty))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), np.zeros((6, 5)))


def changed(change):
    tensor = sparse()
    change(tensor)
    return tensor


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.dims.__setitem__(0, 2), "cannot be used"),
        (lambda t: t.dims.__setitem__(0, 2**40), "GiB when they are plain"),
        (lambda t: t.indices.CopyFrom(numpy_helper.from_array(np.array([-1]))), "cannot be used.*negative"),
        (lambda t: t.indices.CopyFrom(numpy_helper.from_array(np.arange(3))), "cannot be used"),
        (lambda t: t.indices.CopyFrom(numpy_helper.from_array(np.ones((3, 4), int))), "cannot be used"),
    ],
)
def test_sparse_weights_that_are_wrong(tmp_path, place, change, message):
    path = saved(place(changed(change)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"m\.onnx: .*{message}"):
        load(path)


def test_another_operator_with_a_sparse_tensor(tmp_path):
    node = helper.make_node("Foreign", ["x"], ["y"], "odd", domain="local", table=sparse())
    path = saved(model_of([node]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"node 'odd' \(Foreign\) has a sparse tensor as attribute 'table'"):
        load(path)


# --- external data of attributes -----------------------------------------------------------------------


def external(location):
    tensor = numpy_helper.from_array(WEIGHTS, "w")
    set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return helper.make_node("Constant", [], ["w"], "constant", value=tensor)


def external_constant(location):
    return model_of([external(location), PRODUCT])


def external_in_function(location):
    body = [external(location), PRODUCT]
    function = helper.make_function("local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    return model_of([helper.make_node("F", ["x"], ["y"], "call", domain="local")], functions=[function])


def external_in_branch(location):
    return branches(external(location), PRODUCT)


HOLDERS = [external_constant, external_in_function, external_in_branch]


@pytest.mark.parametrize("holder", HOLDERS)
def test_external_attributes_are_found_beside_the_model(tmp_path, monkeypatch, holder):
    path = saved(holder("w.bin"), tmp_path / "models" / "m.onnx")
    (path.parent / "w.bin").write_bytes(WEIGHTS.tobytes())
    monkeypatch.chdir(tmp_path)
    for model in (load(path), simplify(load(path)), load("models/m.onnx")):
        np.testing.assert_allclose(outputs(model)[0], X @ WEIGHTS, rtol=1e-5, atol=1e-6)
    assert files_of("models/m.onnx") == (path.relative_to(tmp_path), path.parent / "w.bin")
    write(load(path), tmp_path / "alone.onnx")
    (path.parent / "w.bin").unlink()
    np.testing.assert_allclose(outputs(tmp_path / "alone.onnx")[0], X @ WEIGHTS, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("location", ["{0}/secret.bin", "../secret.bin", "secret.bin", "link.bin"])
def test_external_attributes_outside_the_folder_are_refused(tmp_path, monkeypatch, holder, location):
    path = saved(holder(location.format(tmp_path)), tmp_path / "models" / "m.onnx")
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"external data.*(is missing|cannot be used)"):
        load(path)
    with pytest.raises(CalibrationError):
        open_session("models/m.onnx", outputs=["y"]).run(None, {"x": X})


def test_large_models_with_external_attributes(tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    model = read_model(saved(external_constant("w.bin"), tmp_path / "m.onnx"))
    save_model(model, tmp_path / "o.onnx", external=True, most_bytes=0)
    (tmp_path / "w.bin").unlink()
    np.testing.assert_allclose(outputs(tmp_path / "o.onnx")[0], X @ WEIGHTS, rtol=1e-5, atol=1e-6)


# --- types with maps -----------------------------------------------------------------------------------

SCORES = helper.make_sequence_type_proto(
    helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    )
)


def with_maps():
    names = {"domain": "ai.onnx.ml", "classlabels_int64s": list(range(5))}
    proto = model_of(
        [PRODUCT, helper.make_node("ZipMap", ["y"], ["scores"], "zip", **names)],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    proto.graph.output.append(helper.make_value_info("scores", SCORES))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return proto


def test_a_map_keeps_its_type(tmp_path):
    model = read_model(saved(with_maps(), tmp_path / "m.onnx"))
    assert repr(model.graph.outputs[1].type) == "sequence(map(int64,tensor(float)))"
    for written in (to_proto(model), to_proto(model.clone()), to_proto(simplify(model))):
        assert written.graph.output[1].type == SCORES
    save_model(model, tmp_path / "o.onnx", external=True, most_bytes=0)
    assert onnx.load(tmp_path / "o.onnx").graph.output[1].type == SCORES
    onnx.checker.check_model(tmp_path / "o.onnx")
    (_, scores) = outputs(tmp_path / "o.onnx")
    assert list(scores[0]) == list(range(5))


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_maps_survive_a_higher_opset(opset):
    proto = with_maps()
    proto.opset_import[0].version = opset
    written = to_proto(simplify(from_proto(proto)))
    assert written.graph.output[1].type == SCORES
    onnx.checker.check_model(written)


def test_maps_inside_a_model_need_no_type():
    proto = with_maps()
    proto.graph.value_info.append(proto.graph.output.pop())
    assert outputs(from_proto(proto))[0].shape == (3, 5)


def test_types_of_maps_are_equal_if_their_text_is():
    one, other = (from_proto(with_maps()).graph.outputs[1].type for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != ir.TensorType(ir.DataType.FLOAT)


# --- text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [b"MatMul", b"product", b"\x01x", b"\x01w", b"local"])
def test_names_that_are_not_utf_8_are_refused(tmp_path, place):
    proto = model_of([PRODUCT], [numpy_helper.from_array(WEIGHTS, "w")])
    raw = proto.SerializeToString().replace(place, place[:-1] + b"\xf5")
    path = tmp_path / "m.onnx"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=r"m\.onnx: b'.*\\xf5.*' \(.*\) is not UTF-8"):
        load(path)


def test_descriptions_that_are_not_utf_8_are_repaired(tmp_path):
    proto = model_of([PRODUCT], [numpy_helper.from_array(WEIGHTS, "w")])
    proto.producer_name = proto.doc_string = proto.graph.node[0].doc_string = "Muenchen"
    helper.set_model_props(proto, {"city": "Muenchen"})
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"Muenchen", "Mün chen".encode("latin-1")))
    model = load(path)
    assert model.producer_name == "M\ufffdn chen"
    write(model, tmp_path / "o.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "o.onnx")[0], X @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_a_protobuf_in_memory_with_something_unusable():
    with pytest.raises(UnusableModelError, match="GiB"):
        from_proto(sparse_initializer(changed(lambda t: t.dims.__setitem__(0, 2**40))))


def test_a_model_of_the_runtime_agrees(tmp_path):
    """The runtime itself reads sparse initializers, so what we make of them can be compared with it."""
    path = saved(sparse_initializer(sparse()), tmp_path / "m.onnx")
    (expected,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X})
    np.testing.assert_array_equal(outputs(load(path))[0], expected)


def test_negative_sizes_are_unknown() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[5,4] x) => (float[5,4] y) { y = Relu(x) }'
    )
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = -128
    model = from_proto(proto)
    shapes = [value.shape for value in (*model.graph.inputs, *model.graph.outputs)]
    assert all(not isinstance(shape[0], int) and shape[1] == 4 for shape in shapes)
