import onnx_ir as ir
from graphs import parse

from onnxq.graph.passes.names import UniqueNamesPass

TEXT = """g (float[N,4] x, bool k) => (float[N,4] y) {
    a = Relu(x)
    y = If (k) <
        then_branch = t () => (float[N,4] u) { b = Neg(a) u = Exp(b) },
        else_branch = e () => (float[N,4] u) { b = Exp(a) u = Neg(b) }>
}"""


def names(model):
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    return [n.name for n in nodes], [o.name for n in nodes for o in n.outputs]


def test_bodies_get_their_own_names():
    model = parse(TEXT)
    assert UniqueNamesPass()(model).modified
    nodes, tensors = names(model)
    assert tensors == ["a", "y", "b", "u", "b_1", "u_1"]
    assert len(set(nodes)) == len(nodes) == 6


def test_first_come_first_served_and_the_interface_never_changes():
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    relu, neg, exp = model.graph
    relu.name, neg.name, exp.name = "n", "n", "n_1"
    neg.outputs[0].name = "y"
    UniqueNamesPass()(model)
    assert [relu.name, neg.name, exp.name] == ["n", "n_2", "n_1"]
    assert [o.name for o in (relu.outputs[0], neg.outputs[0], exp.outputs[0])] == ["a", "y_1", "y"]


def test_nothing_to_do():
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Exp(a) }")
    UniqueNamesPass()(model)
    assert not UniqueNamesPass()(model).modified


def test_left_out_outputs_stay_left_out():
    model = parse(
        """g (float[3,N,2] x) => (float[1,N,4] h) <float[1,16,2] w, float[1,16,4] r> {
            , h = LSTM <hidden_size=4> (x, w, r)
        }"""
    )
    UniqueNamesPass()(model)
    assert [o.name for o in model.graph[0].outputs] == ["", "h"]
