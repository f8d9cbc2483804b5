"""The functions of an ONNX file that decode packed tensors, in ONNX's own language.

All are plain operators on constants, which runtimes compute when they load a file: no `DequantizeLinear` (ONNX Runtime
keeps it for every inference), no power (OpenVINO keeps it), no bits of numbers. For the file's sake they have letters
for names and values: `p` the payload, `m` windows (`spaces.portable.payload`), `e` the same for exponents, `k`
constants of a format, `t` powers of two. Our code calls them by words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import onnx

from spaces.portable.integer_functions import INTEGER_FUNCTIONS

__all__ = ["DOMAIN", "function_letter", "function_protos"]

DOMAIN = "overtone"


def _rebuilding(letter: str, product: str) -> str:
    """Return the function that gives filters of shape d, those but templates as products with the templates j.

    The filters are the templates b and these, in the order o.
    """
    return f"""{letter} <d> (b, g, j, o) => (y) {{
        w = Gather (b, j)
        x = {product} (w, g)
        v = Concat <axis = 0> (b, x)
        z = Gather (v, o)
        d = Constant <value_ints : ints = @d> ()
        y = Reshape (z, d)
    }}"""


_FUNCTIONS = {
    **INTEGER_FUNCTIONS,
    # Whole numbers (n,) as float32 from bytes [a, b) of the payload. A row of bytes holds a whole count of numbers; its
    # product with the windows puts each number's last bit at 1, other numbers' bits above 2^w (= q) or below 1.
    "numbers_of_bytes": """N (p, m, q, a, b, n) => (y) {
        s = Slice (p, a, b)
        f = Cast <to = 1> (s)
        u = Constant <value_ints = [-1]> ()
        w = Shape <start = 0, end = 1> (m)
        r = Concat <axis = 0> (u, w)
        x = Reshape (f, r)
        v = MatMul (x, m)
        l = Floor (v)
        l1 = Div (l, q)
        l2 = Floor (l1)
        l3 = Mul (l2, q)
        c = Sub (l, l3)
        z = Reshape (c, u)
        o = Constant <value_ints = [0]> ()
        y = Slice (z, o, n)
    }""",
    # Whole numbers alone; i = (a, b, n).
    "whole_numbers": """I <i> (p, m, q) => (y) {
        j = Constant <value_ints : ints = @i> ()
        a, b, n = Split <num_outputs = 3> (j)
        y = overtone.N (p, m, q, a, b, n)
    }""",
    # Signed mantissas and scales; i = (a, b, n) of the exponents, then of the mantissas. k = (2^(1 + b), 2^b, 2^p, what
    # an exponent's code is short of its place in t).
    "mantissas_and_scales": """M <i> (p, m, e, k, t) => (x, y) {
        i = Constant <value_ints : ints = @i> ()
        a, b, c, d, f, n = Split <num_outputs = 6> (i)
        q, h, r, o = Split <num_outputs = 4> (k)
        g = overtone.N (p, e, r, a, b, c)
        u = Add (g, o)
        v = Cast <to = 7> (u)
        y = Gather (t, v)
        w = overtone.N (p, m, q, d, f, n)
        l = Less (w, h)
        s = Sub (h, w)
        x = Where (l, w, s)
    }""",
    # Signed numbers alone; i = (a, b, n), k = (2^(1 + b), 2^b).
    "signed_numbers": """L <i> (p, m, k) => (x) {
        i = Constant <value_ints : ints = @i> ()
        a, b, n = Split <num_outputs = 3> (i)
        q, h = Split <num_outputs = 2> (k)
        w = overtone.N (p, m, q, a, b, n)
        l = Less (w, h)
        s = Sub (h, w)
        x = Where (l, w, s)
    }""",
    # Values (n,) of mantissas x and scales s, if all blocks are full; r = (blocks, values in a block, values beside).
    "scaled_blocks": """B <r> (x, s) => (y) {
        r = Constant <value_ints : ints = @r> ()
        u = Constant <value_ints = [1]> ()
        a, b, c = Split <num_outputs = 3> (r)
        f = Concat <axis = 0> (a, u, c)
        v = Reshape (x, r)
        w = Reshape (s, f)
        z = Mul (v, w)
        o = Constant <value_ints = [-1]> ()
        y = Reshape (z, o)
    }""",
    # The same with a short last block in each run; r = (runs, length, values beside, values in a block, blocks).
    "scaled_uneven_blocks": """U <r> (x, s) => (y) {
        r = Constant <value_ints : ints = @r> ()
        a, l, c, n, g = Split <num_outputs = 5> (r)
        u = Constant <value_ints = [1]> ()
        b1 = Concat <axis = 0> (a, g, u, c)
        b2 = Concat <axis = 0> (a, g, n, c)
        o = Constant <value_ints = [-1]> ()
        b3 = Concat <axis = 0> (a, o, c)
        b4 = Concat <axis = 0> (a, l, c)
        s1 = Reshape (s, b1)
        s2 = Expand (s1, b2)
        s3 = Reshape (s2, b3)
        z = Constant <value_ints = [0]> ()
        s4 = Slice (s3, z, l, u)
        v = Reshape (x, b4)
        w = Mul (v, s4)
        y = Reshape (w, o)
    }""",
    # Products of two bases (n_y, K_y) and (n_x, K_x): (n_y n_x, K_y K_x).
    "products_of_bases": """P <d> (a, b) => (y) {
        i = Constant <value_ints = [1, 3]> ()
        j = Constant <value_ints = [0, 2]> ()
        u = Unsqueeze (a, i)
        v = Unsqueeze (b, j)
        w = Mul (u, v)
        d = Constant <value_ints : ints = @d> ()
        y = Reshape (w, d)
    }""",
    # Filters of shape d from coefficients (..., n_y n_x) and products of bases.
    "filters_of_series": """S <d> (c, f) => (y) {
        z = MatMul (c, f)
        d = Constant <value_ints : ints = @d> ()
        y = Reshape (z, d)
    }""",
    # Coefficients (N, C, K_y K_x) from rows (budget, C) and supports (N,) as numbers; g (2, K_y K_x) are the harmonics
    # in y and x, l is K_x. Row number 0 is a row of zeros.
    "allocated_coefficients": """A <l> (c, s, g) => (y) {
        u = Constant <value_ints = [1]> ()
        v = Unsqueeze (s, u)
        k = Constant <value_float : float = @l> ()
        a = Div (v, k)
        b = Floor (a)
        d = Mul (b, k)
        e = Sub (v, d)
        gy, gx = Split <axis = 0, num_outputs = 2> (g)
        hy = LessOrEqual (gy, b)
        hx = LessOrEqual (gx, e)
        h = And (hy, hx)
        i = Cast <to = 1> (h)
        r = Constant <value_ints = [-1]> ()
        j = Reshape (i, r)
        o = Constant <value_int = 0> ()
        n = CumSum (j, o)
        q = Mul (n, j)
        w = Cast <to = 7> (q)
        x = Shape (i)
        t = Reshape (w, x)
        z = Constant <value_ints = [0]> ()
        c1 = Slice (c, z, u)
        c2 = Sub (c1, c1)
        c3 = Concat <axis = 0> (c2, c)
        f = Gather (c3, t)
        y = Transpose <perm = [0, 2, 1]> (f)
    }""",
    # Place (N,) of each filter among the templates (m of them), then the others, from the mask (N,) as numbers.
    "order_of_filters": """R <m> (k) => (y) {
        o = Constant <value_int = 0> ()
        u = Constant <value_float = 1.0> ()
        m = Constant <value_float : float = @m> ()
        a = CumSum (k, o)
        l = Sub (u, k)
        b = CumSum (l, o)
        c = Add (b, m)
        h = Constant <value_float = 0.5> ()
        s = Greater (k, h)
        d = Where (s, a, c)
        e = Sub (d, u)
        y = Cast <to = 7> (e)
    }""",
    # The template of each other filter: n numbers, in turn from 0 to m - 1; i = (0, n, 1, m).
    "templates_in_turn": """Q <n, m> () => (y) {
        a = Constant <value_int = 0> ()
        b = Constant <value_int : int = @n> ()
        c = Constant <value_int = 1> ()
        x = Range (a, b, c)
        m = Constant <value_int : int = @m> ()
        y = Mod (x, m)
    }""",
    # By gains g (N - M, G, 1, T).
    "filters_of_gains": _rebuilding("G", "Mul"),
    # By operators g (N - M, G, T, T).
    "filters_of_operators": _rebuilding("O", "MatMul"),
    # Filters of which all that are no templates (m of them) are zero.
    "filters_among_zeros": """Z <d, m> (b, o) => (y) {
        i = Constant <value_ints = [0]> ()
        u = Constant <value_ints = [1]> ()
        a = Slice (b, i, u)
        s = Sub (a, a)
        v = Concat <axis = 0> (b, s)
        m = Constant <value_int : int = @m> ()
        l = Min (o, m)
        z = Gather (v, l)
        d = Constant <value_ints : ints = @d> ()
        y = Reshape (z, d)
    }""",
    # Filters (N, m) that put what the templates, numbers j (m,), give in the place o (N,) of each filter.
    "placing_filters": """C (o, j) => (y) {
        u = Constant <value_ints = [1]> ()
        a = Unsqueeze (o, u)
        b = Equal (a, j)
        y = Cast <to = 1> (b)
    }""",
    # Maps (N G T,) of each filter: those m (1, G T) of its template s (N,), each of which has t beside each other.
    "maps_of_filters": """Y <t> (s, m) => (y) {
        t = Constant <value_int : int = @t> ()
        a = Mul (s, t)
        u = Constant <value_ints = [1]> ()
        b = Unsqueeze (a, u)
        c = Add (b, m)
        r = Constant <value_ints = [-1]> ()
        y = Reshape (c, r)
    }""",
    # Matrices (N - M, G, 2, 3) of angles (N - M, G, 1).
    "matrices_of_angles": """D (a) => (y) {
        c = Cos (a)
        s = Sin (a)
        n = Neg (s)
        z = Sub (a, a)
        w = Concat <axis = -1> (c, n, z, s, c, z)
        d = Constant <value_ints = [0, 0, 2, 3]> ()
        y = Reshape (w, d)
    }""",
    # Operators (N - M, G, T, T), to be multiplied from the right, of matrices (N - M, G, 2, 3): bilinear weights at the
    # places that the taps r (3, T) are carried to, of the taps a (K_y, 1) and b (K_x, 1); d = (0, 0, T, T).
    "operators_of_matrices": """X <d> (w, r, a, b) => (y) {
        x = MatMul (w, r)
        u = Constant <value_float = 1.0> ()
        f, g = Split <axis = 2, num_outputs = 2> (x)
        f1 = Sub (f, a)
        f2 = Abs (f1)
        f3 = Sub (u, f2)
        f4 = Relu (f3)
        g1 = Sub (g, b)
        g2 = Abs (g1)
        g3 = Sub (u, g2)
        g4 = Relu (g3)
        i = Constant <value_ints = [3]> ()
        j = Constant <value_ints = [2]> ()
        h = Unsqueeze (f4, i)
        l = Unsqueeze (g4, j)
        z = Mul (h, l)
        d = Constant <value_ints : ints = @d> ()
        y = Reshape (z, d)
    }""",
    # Two to the power of whole numbers e; t has the powers from 2^-r.
    "power_of_two": """E (t, r, e) => (y) {
        a = Add (e, r)
        i = Cast <to = 7> (a)
        y = Gather (t, i)
    }""",
    # Values x rounded to block floating point when the network runs; z is the largest magnitude of each one's block,
    # k = (lowest and highest exponent, two to their power, b - 1, 2^b, the r of E, what is too large, 1 / ln 2). The
    # exponent is guessed by a logarithm, and corrected by comparison with powers of two.
    "rounded_by_size": """F (x, z, t, k) => (y) {
        l, h, pl, ph, b, c, r, m, n = Split <num_outputs = 9> (k)
        z1 = Less (z, ph)
        z2 = Where (z1, z, ph)
        z3 = Greater (z2, pl)
        s = Where (z3, z2, pl)
        s1 = Log (s)
        s2 = Mul (s1, n)
        s3 = Floor (s2)
        s4 = Max (s3, l)
        e = Min (s4, h)
        p1 = overtone.E (t, r, e)
        p2 = Greater (p1, s)
        p3 = Cast <to = 1> (p2)
        e1 = Sub (e, p3)
        u = Constant <value_float = 1.0> ()
        e2 = Add (e1, u)
        q1 = overtone.E (t, r, e2)
        q2 = LessOrEqual (q1, s)
        q3 = Cast <to = 1> (q2)
        f = Add (e1, q3)
        f1 = Sub (b, f)
        f2 = overtone.E (t, r, f1)
        f3 = Mul (z, f2)
        f4 = Round (f3)
        f5 = GreaterOrEqual (f4, c)
        f6 = Cast <to = 1> (f5)
        g = Add (f, f6)
        g1 = Sub (b, g)
        a = overtone.E (t, r, g1)
        g2 = Neg (g1)
        d = overtone.E (t, r, g2)
        x1 = Mul (x, a)
        x2 = Round (x1)
        x3 = Mul (x2, d)
        o = Constant <value_float = 0.0> ()
        o1 = Less (z, pl)
        o2 = Equal (x2, o)
        o3 = Or (o1, o2)
        y1 = Where (o3, o, x3)
        m1 = Mul (z, a)
        m2 = Round (m1)
        m3 = Mul (m2, d)
        m4 = Less (m3, m)
        v = Constant <value_float = nan> ()
        y = Where (m4, y1, v)
    }""",
    # An input rounded value by value.
    "rounded_values": """H (x, t, k) => (y) {
        z = Abs (x)
        y = overtone.F (x, z, t, k)
    }""",
    # An input rounded in blocks of channels: as d = (images, channels, rest), with zeros (n, as Pad takes them) after
    # the last channel, as c = (images, blocks, channels in a block, rest).
    "rounded_channels": """K <c, n, d> (x, t, k) => (y) {
        c = Constant <value_ints : ints = @c> ()
        n = Constant <value_ints : ints = @n> ()
        d = Constant <value_ints : ints = @d> ()
        s = Shape (x)
        x1 = Reshape (x, d)
        x2 = Pad (x1, n)
        x3 = Reshape (x2, c)
        a = Abs (x3)
        i = Constant <value_ints = [2]> ()
        z = ReduceMax (a, i)
        w = overtone.F (x3, z, t, k)
        u = Constant <value_ints = [0]> ()
        w1 = Shape (x2)
        w2 = Reshape (w, w1)
        v = Shape <start = 1, end = 2> (x1)
        o = Constant <value_ints = [1]> ()
        w3 = Slice (w2, u, v, o)
        y = Reshape (w3, s)
    }""",
}


def function_letter(name: str) -> str:
    """Return what one of our functions is called in a file."""
    return _FUNCTIONS[name].split(maxsplit=1)[0]


def function_protos(names: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """Return the functions of these names, for an operator set, each after those that it calls."""
    by_letter = {function_letter(name): name for name in _FUNCTIONS}
    wanted: list[str] = []

    def add(name: str) -> None:
        if name not in wanted:
            for called in re.findall(r"overtone\.(\w+)", _FUNCTIONS[name]):
                add(by_letter[called])
            wanted.append(name)

    for name in sorted(names, key=function_letter):
        add(name)
    return [_parsed(name, opset) for name in wanted]


@cache
def _parsed(name: str, opset: int) -> onnx.FunctionProto:
    imports = f'<opset_import: ["" : {opset}, "{DOMAIN}" : 1], domain: "{DOMAIN}">'
    function = onnx.parser.parse_function(f"{imports} {_FUNCTIONS[name]}")
    for node in function.node:
        node.ClearField("name")
        if not node.domain:
            node.ClearField("domain")
    return function
