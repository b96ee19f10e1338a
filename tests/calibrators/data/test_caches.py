import pytest
from graphs import parse

from calibrators.data.caches import cache_lengths, find_caches


def found(text, **given):
    caches = find_caches(parse(text, opset=17, **given).graph)
    return {c.past.name: (c.present.name, c.axis, c.writer.op_type) for c in caches}


@pytest.mark.parametrize(
    ("nodes", "axis", "writer"),
    [
        ("o = Concat <axis = -2> (c, x)", 2, "Concat"),
        ("a = Identity (c) b = Concat <axis = 2> (a, x) o = Identity (b)", 2, "Concat"),
        ("a = Gather <axis = 0> (c, beams) o = Concat <axis = 2> (a, x)", 2, "Concat"),
        ("o = ScatterND (c, at, x)", None, "ScatterND"),
    ],
)
def test_what_is_written_into_and_given_back_is_a_cache(nodes, axis, writer):
    text = f"""g (float[N,2,P,8] c, float[N,2,S,8] x, int64[N] beams, int64[N,2,S,3] at) => (float[N,2,Q,8] o) {{
        {nodes} }}"""
    assert found(text)["c"] == ("o", axis, writer)


@pytest.mark.parametrize(
    "nodes",
    [
        "o = Add (c, x)",
        "a = Concat <axis = 2> (c, x) o = Relu (a)",
        "o = ScatterND (x, at, c)",
        "o = Identity (c)",
    ],
)
def test_other_inputs_are_no_caches(nodes):
    text = (
        f"""g (float[N,2,P,8] c, float[N,2,S,8] x, int64[N,2,S,3] at) => (float[N,2,Q,8] o) {{ {nodes} }}"""
    )
    assert "c" not in found(text)


def test_operators_with_caches_inside():
    text = """g (float[N,S,16] q, float[N,2,P,8] k, float[N,2,P,8] v)
    => (float[N,S,16] y, float[N,2,T,8] nk, float[N,2,T,8] nv)
    { y, nk, nv = com.microsoft.MultiHeadAttention <num_heads = 2> (q, q, q, , , , k, v) }"""
    assert found(text, check=False) == {
        "k": ("nk", 2, "MultiHeadAttention"),
        "v": ("nv", 2, "MultiHeadAttention"),
    }


def test_lengths_get_the_name_of_the_first():
    text = """g (float[N,2,P,8] a, float[N,2,Q,8] b, float[N,2,S,8] x) => (float[N,2,R,8] c, float[N,2,T,8] d)
    { c = Concat <axis = 2> (a, x) d = Concat <axis = 2> (b, x) }"""
    caches = find_caches(parse(text, opset=17).graph)
    assert cache_lengths([c for c in caches if c.past.name in "ab"]) == {"P": "P", "Q": "P"}
