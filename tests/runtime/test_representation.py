"""How results show themselves: short, however large their arrays are, and without a mark of HTML left unescaped."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh
from numba_hinv.runtime import representation

PROBLEM = chain(6, 4, batch=40)
NET = nh.Network([nh.Dense(2, 6), nh.Dense(6, 1, "identity")], "mean_squared_error")
X, Y = np.random.default_rng(0).standard_normal((30, 2)), np.random.default_rng(1).standard_normal((30, 1))


def a_factorization():
    return PROBLEM.hessian.factorize(100.0)


def a_hypergradient():
    return nh.hypergradient(NET, NET.init(), (X, Y), (X, Y), ("l2", "sample_weight"), l2=5.0)


# The result, and what has to be read in its line and in its table.
RESULTS = {
    "Hessian": (lambda: PROBLEM.hessian, "B = 40", "samples40"),
    "chain": (lambda: nh.Hessian.from_blocks([PROBLEM.hessian.blocks(0)]), "chain of 1 layers", "parameters42"),
    "Factorization": (a_factorization, "+ 100 I", "factored bydense"),
    "Laplace": (lambda: nh.Laplace(NET, NET.init(), X, Y, curvature="ggn"), "prior_precision=1", "samples30"),
    "SolveInfo": (
        lambda: a_factorization().solve(PROBLEM.right_hand_side(50), full_output=True)[1],
        "backward_error=<float64 array of shape (50,)>", "krylov_steps0",
    ),
    "SolveInfo of a vector": (
        lambda: a_factorization().solve(PROBLEM.right_hand_side(), full_output=True)[1],
        "krylov_steps=0", "krylov_steps0",
    ),
    "Inertia": (lambda: a_factorization().inertia, "negative=0, zero=0", "exactTrue"),
    "TrustRegionStep": (
        lambda: nh.trust_region_step(PROBLEM.hessian, 0.1), "on_boundary=True", "on_boundaryTrue"
    ),
    "Hypergradient": (a_hypergradient, "<float64 array of shape (30,)>", "adjoint<float64 array"),
    "SpectralDensity": (
        lambda: nh.spectral_density(PROBLEM.hessian, np.linspace(-9.0, 9.0, 40)), "bins=39, from=-9, to=9", "inside"
    ),
    "Influence": (lambda: nh.influence(NET, NET.init(), X, Y, X[:7], Y[:7], 5.0), "on 7 test samples", "test samples7"),
    "LeaveOneOut": (lambda: nh.leave_one_out(NET, NET.init(), X, Y, l2=5.0), "30 samples", "samples30"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RESULTS)
def test_results_show_a_line_and_a_table(name):
    make, in_line, in_table = RESULTS[name]
    result = make()
    line, table = repr(result), result._repr_html_()
    assert in_line in line and "\n" not in line and len(line) < 500
    # Well formed, and what is between the marks is what was meant.
    text = "".join(ElementTree.fromstring(table).itertext())
    assert in_table in text and len(table) < 4000
    assert "object at 0x" not in line + table and "[[" not in line + table


def test_text_is_escaped():
    shown = representation.table("<b>", {"a&b": "<script>alert('1')</script>", "none": None})
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "a&amp;b" in shown and "none" not in shown
    assert "".join(ElementTree.fromstring(shown).itertext()) == "<b>a&b<script>alert('1')</script>"


def test_names_of_a_user_are_escaped():
    H = NET.hessian(NET.init(), X, Y)
    H.loss = "<i>mine</i>"
    assert "<i>mine" not in H._repr_html_() and "&lt;i&gt;mine" in H._repr_html_()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (np.float32(0.1), "0.1"),
        (3, "3"),
        (True, "True"),
        (np.array(1e-17), "1e-17"),
        (np.array([1.0, np.nan]), "[1, nan]"),
        (np.arange(3), "[0, 1, 2]"),
        (np.zeros((2, 2), np.float32), "<float32 array of shape (2, 2)>"),
        (np.zeros(7), "<float64 array of shape (7,)>"),
        ((0.5, np.zeros(9)), "(0.5, <float64 array of shape (9,)>)"),
        ("x" * 300, "x" * 197 + "..."),
    ],
)
def test_values_are_shortened(value, text):
    assert representation.shortened(value) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1000, "1000 bytes"), (1536, "1.5 KiB"), (1023 * 1024, "1023 KiB"), (2**41, "2 TiB")],
)
def test_bytes_are_readable(size, text):
    assert representation.memory(size) == text
