"""Transformer encoders as text."""

from graphs import parse

# --- transformers -----------------------------------------------------------------------------------

WIDE = "float[8, 8] {0}"


PARAMETERS = ", ".join(WIDE.format(name) for name in ("wq", "wk", "wv", "wo"))


ENCODER = """
    q0 = MatMul (x, wq) q1 = Add (q0, b) q2 = Reshape (q1, heads) q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul (x, wk) k1 = Add (b, k0) k2 = Reshape (k1, heads) k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v0 = MatMul (x, wv) v1 = Add (v0, b) v2 = Reshape (v1, heads) v = Transpose <perm = [0, 2, 1, 3]> (v2)
    s0 = MatMul (q, k) s = Div (s0, root) p = Softmax <axis = -1> (s) o0 = MatMul (p, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0) o2 = Reshape (o1, joined) o3 = MatMul (o2, wo) o = Add (o3, b)
    a = Add (x, o) n = LayerNormalization (a, g, b)
    h0 = MatMul (n, up) h1 = Add (h0, c) {activation} d0 = MatMul (h, down) d = Add (d0, b)
    e = Add (n, d) y = LayerNormalization (e, g, b)"""


ACTIVATIONS = {
    "relu": "h = Relu (h1)",
    "gelu": "h2 = Div (h1, sqrt2) h3 = Erf (h2) h4 = Add (h3, one) h5 = Mul (h1, h4) h = Mul (h5, half)",
    "quick-gelu": "h2 = Mul (h1, sqrt2) h3 = Sigmoid (h2) h = Mul (h1, h3)",
}


def encoder(activation, shape):
    return parse(
        f"""g (float[{shape}] x) => (float[{shape}] y)
        <{PARAMETERS}, float[8] b, float[8] g, float[8, 32] up, float[32] c, float[32, 8] down, float root,
        float sqrt2, float one, float half, int64[4] heads, int64[3] joined>
        {{ {ENCODER.format(activation=ACTIVATIONS[activation])} }}""",
        opset=17,
        root=2,
        sqrt2=2**0.5,
        one=1,
        half=0.5,
        heads=[0, 0, 2, 4],
        joined=[0, 0, 8],
    )
