import errno
import os
import stat

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, parse

from calibrators.session import open_session
from onnxq.core.errors import ModelError
from onnxq.graph import files
from onnxq.graph.files import check_place, load, size_on_disk, write, write_validated

TEXT = "g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { a = MatMul(x, w) y = Relu(a) }"


@pytest.fixture
def model():
    return parse(TEXT)


@pytest.fixture
def external(tmp_path, model):
    """A model on disk with its weights beside it."""
    path = tmp_path / "in.onnx"
    ir.save(model, path, external_data="in.weights", size_threshold_bytes=0)
    return path


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


# --- reading ---------------------------------------------------------------------------------------


def test_there_and_back(tmp_path, model):
    write(model, tmp_path / "out.onnx")
    assert_same_outputs(model, load(tmp_path / "out.onnx"))
    assert leftovers(tmp_path) == ["out.onnx"]


def test_relative_paths_survive_a_change_of_directory(external, monkeypatch):
    monkeypatch.chdir(external.parent)
    loaded = load("in.onnx")
    monkeypatch.chdir("/")
    assert loaded.graph.initializers["w"].const_value.numpy().shape == (4, 4)


def test_no_such_file(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        load(tmp_path / "none.onnx")


def test_a_directory(tmp_path):
    with pytest.raises(ModelError, match="is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\x08\x07", b"hello, world\n" * 50, bytes(range(256)) * 9, b"\x00"]
)
def test_not_onnx(tmp_path, content):
    path = tmp_path / "picture.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"picture\.onnx: not an ONNX model"):
        load(path)


def test_every_truncation_is_noticed(tmp_path, model):
    whole = ir.to_proto(model).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            load(path)


def test_another_protobuf(tmp_path, model):
    path = tmp_path / "tensor.onnx"
    path.write_bytes(onnx.numpy_helper.from_array(np.arange(100.0)).SerializeToString())
    with pytest.raises(ModelError, match="not an ONNX model"):
        load(path)


def _no_nodes(graph):
    del graph.node[:]
    graph.output[0].name = "x"


def _no_outputs(graph):
    del graph.output[:]


def _no_weights(graph):
    del graph.initializer[:]


def _output_of_no_node(graph):
    graph.node[1].output[0] = "z"


def _attribute_of_no_function(graph):
    graph.node[1].attribute[0].ref_attr_name = "beta"


def _output_listed_twice(graph):
    graph.output.append(graph.output[0])


def _cycle(graph):
    graph.node[0].input[0] = "y"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_nodes, "no nodes"),
        (_no_outputs, "has no outputs"),
        (_no_weights, "reads tensor 'w', which nothing"),
        (_output_of_no_node, "provides the graph output 'y'"),
        (_attribute_of_no_function, r"attribute 'alpha' of node .* refers to 'beta'"),
        (_output_listed_twice, "output 'y' is listed twice"),
        (_cycle, "cycle"),
    ],
)
def test_no_valid_graph(tmp_path, spoil, message):
    proto = ir.to_proto(parse(TEXT.replace("Relu", "Elu<alpha = 2.0>")))
    spoil(proto.graph)
    path = tmp_path / "spoiled.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=message):
        load(path)


def test_nodes_out_of_order_are_sorted(tmp_path):
    before = parse("g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    proto = ir.to_proto(before)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])
    path = tmp_path / "shuffled.onnx"
    path.write_bytes(proto.SerializeToString())
    assert [n.op_type for n in load(path).graph] == ["Relu", "Neg", "Exp"]


def test_unreadable(tmp_path, model, monkeypatch):
    path = tmp_path / "in.onnx"
    write(model, path)

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "read_proto", denied)
    with pytest.raises(ModelError, match=r"cannot be read \(Permission denied\)"):
        load(path)


# --- external data ---------------------------------------------------------------------------------


def test_external_weights_are_mapped_and_not_read(external, model):
    loaded = load(external)
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert_same_outputs(model, loaded)


def test_missing_external_data(external):
    (external.parent / "in.weights").unlink()
    with pytest.raises(ModelError, match=r"external data file .*in\.weights with tensor 'w' is missing"):
        load(external)


def test_short_external_data(external):
    os.truncate(external.parent / "in.weights", 60)
    with pytest.raises(ModelError, match=r"in\.weights ends before tensor 'w' \(60 bytes, 64 needed\)"):
        load(external)


def test_external_data_outside_the_folder(tmp_path, model):
    folder = tmp_path / "model"
    folder.mkdir()
    ir.save(model, folder / "in.onnx", external_data="in.weights", size_threshold_bytes=0)
    (folder / "in.weights").rename(tmp_path / "in.weights")
    (folder / "in.weights").symlink_to(tmp_path / "in.weights")
    with pytest.raises(ModelError, match="cannot be used"):
        load(folder / "in.onnx")


def test_external_weights_come_inside_a_small_model(external, tmp_path, model):
    loaded = load(external)
    write(loaded, tmp_path / "out.onnx")
    (tmp_path / "in.weights").unlink()
    assert_same_outputs(model, load(tmp_path / "out.onnx"))
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor), "the given model stays"


@pytest.fixture
def small_limit(monkeypatch):
    """As if a protobuf held next to nothing."""
    monkeypatch.setattr(files, "INLINE_LIMIT", 100)


BIG = parse("g (float[N,32] x) => (float[N,32] y) <float[32,32] w> { a = MatMul(x, w) y = Relu(a) }")


LAYERS = parse(
    """g (float[N,32] x) => (float[N,32] y) <float[32,32] u, float[32,32] v, float[32,32] w, float[32,64] z>
    { a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = MatMul(c, w) e = MatMul(d, z) y = Slice(e, s, t, o) }""".replace(
        "z>", "z, int64[1] s = {0}, int64[1] t = {32}, int64[1] o = {1}>"
    )
)
"""Three weights of 4096 bytes, and one of 8192."""


@pytest.mark.usefixtures("small_limit")
def test_weights_are_split_into_files_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHARD_BYTES", 9000)
    write_validated(LAYERS, tmp_path / "out.onnx", lambda path: assert_same_outputs(LAYERS, load(path)))
    assert leftovers(tmp_path) == ["out.onnx", "out.onnx.data", "out.onnx.data_1", "out.onnx.data_2"]
    sizes = [(tmp_path / name).stat().st_size for name in leftovers(tmp_path)]
    assert sizes[1:] == [8192, 4096, 8192]
    assert size_on_disk(tmp_path / "out.onnx") == sum(sizes)
    assert_same_outputs(LAYERS, load(tmp_path / "out.onnx"))
    open_session(tmp_path / "out.onnx")


@pytest.mark.usefixtures("small_limit")
def test_all_files_of_weights_appear_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHARD_BYTES", 9000)
    (tmp_path / "out.onnx.data_1").write_text("mine")

    def refused(path):
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        write_validated(LAYERS, tmp_path / "out.onnx", refused)
    assert leftovers(tmp_path) == ["out.onnx.data_1"]
    assert (tmp_path / "out.onnx.data_1").read_text() == "mine"


@pytest.mark.usefixtures("small_limit")
def test_large_models_keep_weights_beside(tmp_path):
    seen = []
    write_validated(BIG, tmp_path / "out.onnx", lambda p: seen.append((load(p), p)))
    assert leftovers(tmp_path) == ["out.onnx", "out.onnx.data"]
    assert not seen[0][1].exists()
    loaded = load(tmp_path / "out.onnx")
    assert loaded.graph.initializers["w"].const_value.location == "out.onnx.data"
    assert_same_outputs(BIG, loaded)
    assert not isinstance(BIG.graph.initializers["w"].const_value, ir.ExternalTensor)
    total = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert size_on_disk(tmp_path / "out.onnx") == total


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_between_the_two_files_puts_the_old_data_back(tmp_path, monkeypatch, existed):
    target = tmp_path / "out.onnx"
    if existed:
        write(BIG, target)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = BIG.clone()
    other.graph.initializers["w"].const_value = ir.tensor(np.zeros((32, 32), np.float32), name="w")
    replace = type(target).replace

    def failing(self, where):
        if where == target:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, where)

    monkeypatch.setattr(type(target), "replace", failing)
    with pytest.raises(ModelError, match="Input/output error"):
        write(other, target)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_size_of_a_plain_model(tmp_path, model):
    write(model, tmp_path / "out.onnx")
    assert size_on_disk(tmp_path / "out.onnx") == (tmp_path / "out.onnx").stat().st_size


# --- writing, whole or not at all ------------------------------------------------------------------


@pytest.fixture
def occupied(tmp_path):
    path = tmp_path / "out.onnx"
    path.write_bytes(b"precious")
    return path


def assert_untouched(path):
    assert path.read_bytes() == b"precious"
    assert leftovers(path.parent) == ["out.onnx"]


def test_an_existing_file_is_replaced(occupied, model):
    write(model, occupied)
    assert_same_outputs(model, load(occupied))
    assert leftovers(occupied.parent) == ["out.onnx"]


def test_permissions_are_those_of_any_new_file(tmp_path, model):
    (tmp_path / "plain").touch()
    write(model, tmp_path / "out.onnx")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "out.onnx")}
    assert len(modes) == 1


def test_validation_sees_the_finished_file_and_can_refuse_it(occupied, model):
    def refuse(path):
        assert_same_outputs(model, load(path))
        assert path.parent.parent == occupied.parent
        raise ModelError("does not load in the runtime")

    with pytest.raises(ModelError, match="does not load in the runtime"):
        write_validated(model, occupied, refuse)
    assert_untouched(occupied)


def test_an_interrupt_leaves_nothing_behind(occupied, model):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_validated(model, occupied, interrupt)
    assert_untouched(occupied)


def test_an_invalid_model_is_not_written(occupied, model):
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"not valid ONNX: .*NoSuchOperator"):
        write(model, occupied)
    assert_untouched(occupied)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("stage", ["mkdir", "save_model", "fsync"])
def test_what_the_system_refuses(occupied, model, monkeypatch, code, message, stage):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    owner = {"mkdir": type(occupied), "save_model": files, "fsync": files.os}[stage]
    monkeypatch.setattr(owner, stage, fail)
    with pytest.raises(ModelError, match=f"out.onnx: cannot be written: .*{message}"):
        write(model, occupied)
    monkeypatch.undo()
    assert_untouched(occupied)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_directory(tmp_path, model):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ModelError, match="permission denied"):
            check_place(tmp_path / "out.onnx")
        with pytest.raises(ModelError, match="permission denied"):
            write(model, tmp_path / "out.onnx")
    finally:
        tmp_path.chmod(0o700)


def test_a_missing_directory(tmp_path, model):
    with pytest.raises(ModelError, match="there is no directory"):
        check_place(tmp_path / "none" / "out.onnx")
    with pytest.raises(ModelError, match="there is no directory"):
        write(model, tmp_path / "none" / "out.onnx")


def test_a_directory_as_target(tmp_path, model):
    with pytest.raises(ModelError, match="is a directory"):
        check_place(tmp_path)
    with pytest.raises(ModelError, match="is a directory"):
        write(model, tmp_path)


def test_the_same_model_gives_the_same_bytes(tmp_path, model):
    for name in ("a.onnx", "b.onnx"):
        write(model, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_link_is_written_through_and_keeps_its_mode(tmp_path):
    old, link = tmp_path / "old.onnx", tmp_path / "link.onnx"
    old.write_bytes(b"old")
    old.chmod(0o640)
    link.symlink_to(old)
    write(parse("g (float[N] x) => (float[N] y) { y = Relu (x) }"), link)
    assert link.is_symlink()
    assert old.stat().st_mode & 0o777 == 0o640
    assert load(old).graph.outputs[0].name == "y"


def test_what_fails_in_the_hook_is_not_blamed_on_the_place(tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere")

    with pytest.raises(OSError, match="elsewhere"):
        write_validated(parse("g (float[N] x) => (float[N] y) { y = Relu (x) }"), tmp_path / "o.onnx", full)
    assert not list(tmp_path.iterdir())


def test_a_size_of_minus_one_is_not_known(tmp_path):
    model = parse("g (float[N,3,H] x) => (float[N,3,H] y) { r = Relu(x) y = Relu(r) }")
    for value in (*model.graph.inputs, *model.graph.outputs, model.graph[0].outputs[0]):
        value.shape, value.dtype = ir.Shape([-1, 3, None]), ir.DataType.FLOAT
    ir.save(model, tmp_path / "m.onnx")
    read = load(tmp_path / "m.onnx")
    for value in (*read.graph.inputs, *read.graph.outputs, read.graph[0].outputs[0]):
        assert [size if isinstance(size, int) else None for size in value.shape] == [None, 3, None]
