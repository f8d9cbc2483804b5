"""Functions of ONNX files of networks that compute in int8; beside those of `spaces.portable.functions`."""

__all__ = ["INTEGER_FUNCTIONS"]

INTEGER_FUNCTIONS = {
    # Factor and shift of the outputs of a norm of scale g, shift b, mean m, variance v and eps e.
    "folded_norm": """e (g, b, m, v, e) => (y, z) {
        w = Add (v, e)
        d = Sqrt (w)
        y = Div (g, d)
        n = Mul (m, y)
        z = Sub (b, n)
    }""",
    # The same behind a bias c.
    "folded_norm_behind_bias": """y (g, b, m, v, e, c) => (y, z) {
        w = Add (v, e)
        d = Sqrt (w)
        y = Div (g, d)
        x = Sub (m, c)
        n = Mul (x, y)
        z = Sub (b, n)
    }""",
    # Filters w in int8 and a bias in int32, both dequantized, from factor a and shift b of the outputs, (N,) or (1,),
    # the input's scale s and the largest code q (`layers.integer.kernels`).
    "int8_filters_and_bias": """w (w, a, b, s, q) => (y, z) {
        f = Flatten <axis = 1> (w)
        i = Constant <value_ints = [1]> ()
        f1 = Abs (f)
        m = ReduceMax <keepdims = 1> (f1, i)
        u = Constant <value_float = 1.0> ()
        r = Constant <value_ints = [-1]> ()
        t = Constant <value_float = 1e-30> ()
        m1 = Greater (m, t)
        m2 = Div (m, q)
        c = Where (m1, m2, u)
        f2 = Div (f, c)
        f3 = Round (f2)
        a1 = Unsqueeze (a, i)
        a2 = Abs (a1)
        a3 = Sign (a1)
        c1 = Mul (a2, c)
        l = Constant <value_float = 9.313225746154785e-10> ()
        b1 = Unsqueeze (b, i)
        b2 = Abs (b1)
        b3 = Mul (b2, l)
        b4 = Div (b3, s)
        c2 = Max (c1, b4, t)
        f4 = Div (c1, c2)
        f5 = Mul (f4, a3)
        f6 = Mul (f3, f5)
        f7 = Round (f6)
        f8 = Cast <to = 3> (f7)
        d = Shape (w)
        f9 = Reshape (f8, d)
        c3 = Reshape (c2, r)
        n = Sub (c3, c3)
        n1 = Cast <to = 3> (n)
        y = DequantizeLinear <axis = 0> (f9, c3, n1)
        c4 = Mul (c3, s)
        b5 = Div (b, c4)
        b6 = Round (b5)
        b7 = Cast <to = 6> (b6)
        z = DequantizeLinear <axis = 0> (b7, c4)
    }""",
}
