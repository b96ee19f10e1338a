"""Names for new nodes and tensors."""

import pytest
from graphs import parse

from onnxq.graph.nodes import unique_name, unused_name, unused_node

TEXT = """g (float[4] x) => (float[4] y) <float[4] w>
{ x_1 = Add(x, w)  y = Relu(x_1) }"""


@pytest.mark.parametrize(
    ("taken", "name"), [((), "a"), (("b",), "a"), (("a",), "a_1"), (("a", "a_1", "a_3"), "a_2")]
)
def test_the_first_number_that_is_free(taken, name):
    assert unique_name("a", taken) == name


def test_names_of_tensors_and_of_nodes_are_apart():
    model = parse(TEXT)
    for node, name in zip(model.graph, ("w", "n"), strict=True):
        node.name = name
    assert [unused_name(name, model) for name in ("x", "w", "y", "n")] == ["x_2", "w_1", "y_1", "n"]
    assert [unused_node(name, model) for name in ("x", "w", "y", "n")] == ["x", "w_1", "y", "n_1"]
