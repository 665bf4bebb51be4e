"""Chains given as derivative blocks, against the dense matrix built from the definition and against sparse LU."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from problems import GOLDEN, golden

import numba_hinv as nh
from numba_hinv.kernels.dense.symmetric import symmetric_means


def symmetric(rng, n):
    square = rng.standard_normal((n, n))
    return square + square.T


def random_chain(seed, num_layers=12, sizes=None, dtype=np.float64):
    """(blocks, terminal): ragged with a from 1 to 5 and p from 0 to 4, or all with ``sizes = (a, p)``; indefinite."""
    rng = np.random.default_rng(seed)
    blocks, a_in = [], 0
    for l in range(num_layers):
        a, p = sizes or (rng.integers(1, 6), rng.integers(0 if l else 1, 5))
        blocks.append(
            nh.LayerBlocks(
                rng.standard_normal((a, p)).astype(dtype),
                (rng.standard_normal((a, a_in)) / np.sqrt(max(a_in, 1))).astype(dtype),
                symmetric(rng, p).astype(dtype),
                rng.standard_normal((p, a_in)).astype(dtype),
                symmetric(rng, a_in).astype(dtype),
            )
        )
        a_in = a
    return blocks, symmetric(rng, a_in).astype(dtype)


def dense(blocks, terminal):
    """H from its definition: second derivatives of sum_l g_l^T f_l along the chain's linear response."""
    ends = np.cumsum([block.num_params for block in blocks])
    P = ends[-1]
    H, dz = np.zeros((P, P)), np.zeros((blocks[0].Dz.shape[1], P))
    for block, end in zip(blocks, ends):
        dx = np.eye(P)[end - block.num_params : end]
        cross = dx.T @ block.Dzx @ dz
        H += dx.T @ block.Dxx @ dx + cross + cross.T + dz.T @ block.Dzz @ dz
        dz = block.Dx @ dx + block.Dz @ dz
    return H + dz.T @ terminal @ dz


def lifted(blocks, terminal, damping):
    """The sparse system in (x_l, z_l, mu_l), and where the x are in it."""
    L = len(blocks)
    grid = [[None] * (3 * L) for _ in range(3 * L)]
    for l, block in enumerate(blocks):
        a, p = block.Dx.shape
        x, z, mu = l, L + l, 2 * L + l
        grid[x][x] = block.Dxx + damping * np.eye(p)
        grid[x][mu], grid[mu][x] = block.Dx.T, block.Dx
        grid[mu][z] = grid[z][mu] = -np.eye(a)
        grid[z][z] = terminal if l == L - 1 else blocks[l + 1].Dzz
        if l:
            grid[x][z - 1], grid[z - 1][x] = block.Dzx, block.Dzx.T
            grid[mu][z - 1], grid[z - 1][mu] = block.Dz, block.Dz.T
    return scipy.sparse.bmat(grid, format="csc"), sum(block.num_params for block in blocks)


def backward_error(A, x, b):
    return np.linalg.norm(b - A @ x) / (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))


@pytest.mark.parametrize("seed", range(8))
def test_ragged_chains(seed):
    blocks, terminal = random_chain(seed)
    A = dense(blocks, terminal)
    H = nh.Hessian.from_blocks(blocks, terminal)
    v = np.random.default_rng(seed).standard_normal((A.shape[0], 3))
    scale = np.abs(A).max()
    assert np.abs(H @ v - A @ v).max() < 1e-14 * scale * np.abs(v).sum(axis=0).max()
    assert np.abs(H.todense() - A).max() < 1e-14 * scale
    for damping in (1.0, 0.03, -0.4):
        F = H.factorize(damping)
        shifted = A + damping * np.eye(A.shape[0])
        eigenvalues = np.linalg.eigvalsh(shifted)
        assert F.inertia == ((eigenvalues < 0).sum(), 0, (eigenvalues > 0).sum(), True)
        sign, logabsdet = F.slogdet()
        expected = np.linalg.slogdet(shifted)
        assert sign == expected[0] and abs(logabsdet - expected[1]) < 1e-10 * abs(expected[1])
        for x in (F.solve(v), np.column_stack([F.solve(column) for column in v.T])):
            assert backward_error(shifted, x, v) < 1e-14
    assert H.loss is H.gradient is H.network is None


def test_no_damping_and_no_terminal():
    blocks, _ = random_chain(3)
    A = dense(blocks, np.zeros((blocks[-1].Dx.shape[0],) * 2))
    H = nh.Hessian.from_blocks(iter(blocks))
    b = np.ones(A.shape[0])
    assert backward_error(A, H.factorize(0).solve(b), b) < 1e-14
    assert H.count_below(0.7) == (np.linalg.eigvalsh(A) < 0.7).sum()


@pytest.mark.parametrize("sizes", [(1, 1), (4, 4), (3, 17), (17, 3), (24, 40)])
def test_equal_layers(sizes):
    blocks, terminal = random_chain(0, 9, sizes)
    A = dense(blocks, terminal) + np.eye(9 * sizes[1])
    F = nh.Hessian.from_blocks(blocks, terminal).factorize(1.0)
    b = np.ones((A.shape[0], 2))
    assert backward_error(A, F.solve(b), b) < 1e-14
    assert F.inertia.negative == (np.linalg.eigvalsh(A) < 0).sum()


def test_long_chain_against_sparse_lu():
    blocks, terminal = random_chain(5, 400)
    H = nh.Hessian.from_blocks(blocks, terminal)
    damping = 0.1 * H.norm()
    system, P = lifted(blocks, terminal, damping)
    b = np.random.default_rng(0).standard_normal(P)
    expected = scipy.sparse.linalg.spsolve(system, np.append(b, np.zeros(system.shape[0] - P)))[:P]
    x = H.factorize(damping).solve(b)
    # Both have errors of u times the condition number, which is at most 1.2 / 0.1 where H is positive, and larger here.
    assert np.linalg.norm(x - expected) < 1e-9 * np.linalg.norm(expected)


def test_a_hundred_thousand_layers():
    rng = np.random.default_rng(0)
    Dx, Dz, Dzx = rng.standard_normal((100, 4, 4)), 0.4 * rng.standard_normal((100, 4, 4)), np.zeros((4, 4))
    eye = np.eye(4)
    blocks = [nh.LayerBlocks(Dx[l % 100], Dz[l % 100], eye, Dzx, eye) for l in range(100_000)]
    H = nh.Hessian.from_blocks(blocks, eye)
    b = rng.standard_normal(H.shape[0])
    F = H.factorize(0.0)
    x, info = F.solve(b, full_output=True)
    assert F.inertia == (0, 0, 400_000, True) and info.backward_error < 1e-14
    # The first rows of H x, by the adjoint recursion in NumPy, over all layers.
    z, states, parts = np.zeros(4), [], x.reshape(-1, 4)
    for block, part in zip(blocks, parts):
        z = block.Dx @ part + block.Dz @ z
        states.append(z)
    q = np.zeros(4)
    for l in range(99_999, 0, -1):
        q = q + states[l]
        q = blocks[l].Dz.T @ q
    first = parts[0] + blocks[0].Dx.T @ (q + states[0])
    assert np.abs(first - b[:4]).max() < 1e-11


@pytest.mark.parametrize("name", GOLDEN)
def test_blocks_of_a_net_give_its_hessian_again(name):
    problem, g = golden(name)
    H = problem.hessian
    again = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    scale = np.abs(g["hessian"]).max()
    assert np.abs(again.todense() - g["hessian"]).max() < 1e-13 * scale
    for damping, inertia in zip(g["dampings"], g["inertia"]):
        found = again.factorize(damping).inertia
        assert not found.exact or (found.negative, found.positive) == tuple(inertia)


def test_blocks_come_back():
    blocks, terminal = random_chain(2)
    H = nh.Hessian.from_blocks(blocks, terminal)
    np.testing.assert_array_equal(H.terminal, terminal)
    for l, given in enumerate(blocks):
        for found in (H.blocks(l), H.blocks(l - len(blocks)), H.blocks(np.int32(l))):
            for name in nh.LayerBlocks.__slots__:
                np.testing.assert_array_equal(getattr(found, name), getattr(given, name))


def test_incoming_states_of_the_first_layer_do_not_matter():
    blocks, terminal = random_chain(1, sizes=(3, 2))
    first = blocks[0]
    rng = np.random.default_rng(0)
    fed = nh.LayerBlocks(first.Dx, rng.random((3, 5)), first.Dxx, rng.random((2, 5)), np.eye(5))
    one = nh.Hessian.from_blocks(blocks, terminal).factorize(0.5)
    other = nh.Hessian.from_blocks([fed, *blocks[1:]], terminal).factorize(0.5)
    b = rng.random(one.shape[0])
    np.testing.assert_array_equal(one.solve(b), other.solve(b))


def test_scaled_states():
    """States in units that differ by 10^60 from layer to layer leave H, and so the solution, as it was."""
    blocks, terminal = random_chain(4)
    rng = np.random.default_rng(1)
    units = 2.0 ** rng.integers(-200, 200, len(blocks))
    scaled = []
    for l, block in enumerate(blocks):
        before, after = units[l - 1] if l else 1.0, units[l]
        scaled.append(
            nh.LayerBlocks(
                block.Dx / after, block.Dz * before / after, block.Dxx, block.Dzx * before, block.Dzz * before**2
            )
        )
    A = dense(blocks, terminal)
    H = nh.Hessian.from_blocks(scaled, terminal * units[-1] ** 2)
    F = H.factorize(0.3)
    b = np.ones(A.shape[0])
    A += 0.3 * np.eye(A.shape[0])
    assert backward_error(A, F.solve(b, refine=False), b) < 1e-12
    assert backward_error(A, F.solve(b), b) < 1e-14
    assert F.inertia.negative == (np.linalg.eigvalsh(A) < 0).sum() and F.inertia.exact


def test_precisions():
    blocks, terminal = random_chain(6, dtype=np.float32)
    H = nh.Hessian.from_blocks(blocks, terminal)
    assert H.dtype == H.blocks(3).Dzz.dtype == np.float32
    assert H.factorize(10.0).solve(np.ones(H.shape[0], "f4")).dtype == np.float32
    wide = nh.Hessian.from_blocks(blocks, terminal.astype(np.float64))
    assert wide.dtype == np.float64
    A = dense(blocks, terminal.astype(np.float64)) + 10.0 * np.eye(H.shape[0])
    b = np.ones(H.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backward_error(A, wide.factorize(10.0, factor_dtype="float32").solve(b), b) < 1e-14


def test_saved_and_pickled(tmp_path):
    blocks, terminal = random_chain(7)
    F = nh.Hessian.from_blocks(blocks, terminal).factorize(0.2)
    b = np.ones(F.shape[0])
    F.save(tmp_path / "f")
    for again in (nh.load(tmp_path / "f"), pickle.loads(pickle.dumps(F))):
        np.testing.assert_array_equal(again.solve(b), F.solve(b))
        assert again.inertia == F.inertia and again.hessian.loss is None and again.hessian.gradient is None
        np.testing.assert_array_equal(again.hessian.blocks(3).Dzx, blocks[3].Dzx)


def test_singular():
    blocks, terminal = random_chain(8)
    eigenvalue = np.linalg.eigvalsh(dense(blocks, terminal))[5]
    with pytest.raises(np.linalg.LinAlgError, match="layer"):
        nh.Hessian.from_blocks(blocks, terminal).factorize(-eigenvalue)


# ---- what is refused ------------------------------------------------------------------------------------------------

GOOD = dict(Dx=np.ones((3, 2)), Dz=np.ones((3, 4)), Dxx=np.eye(2), Dzx=np.ones((2, 4)), Dzz=np.eye(4))


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("Dx", np.ones(3), ValueError),
        ("Dx", np.ones((0, 2)), ValueError),
        ("Dz", np.ones((2, 4)), ValueError),
        ("Dxx", np.eye(3), ValueError),
        ("Dzx", np.ones((4, 2)), ValueError),
        ("Dzz", np.eye(3), ValueError),
        ("Dzz", "wrong", TypeError),
        ("Dxx", np.eye(2) * 1j, TypeError),
        ("Dzx", None, TypeError),
    ],
)
def test_malformed_blocks(name, value, error):
    with pytest.raises(error, match=f"^{name}: "):
        nh.LayerBlocks(**{**GOOD, name: value})


def changed(at, name, place, value):
    blocks, terminal = random_chain(0, 5, (3, 2))
    fields = {field: getattr(blocks[at], field).copy() for field in nh.LayerBlocks.__slots__}
    fields[name][place] = value
    blocks[at] = nh.LayerBlocks(**fields)
    return blocks, terminal


@pytest.mark.parametrize(
    "blocks, words",
    [
        (lambda: ([], None), "at least one layer"),
        (lambda: ([nh.LayerBlocks(**GOOD), nh.LayerBlocks(**GOOD)], None), "layer 1"),
        (lambda: (random_chain(0, 5, (3, 0))[0], None), "at least one parameter"),
        (lambda: changed(3, "Dxx", (0, 1), 0.5), "Dxx of layer 3"),
        (lambda: changed(2, "Dzz", (2, 1), 0.5), "Dzz of layer 2"),
        (lambda: changed(4, "Dzx", (1, 2), np.nan), r"nan in Dzx of layer 4 at index \(1, 2\)"),
        (lambda: changed(1, "Dx", (0, 0), np.inf), "inf in Dx of layer 1"),
    ],
)
def test_malformed_chains(blocks, words):
    with pytest.raises(ValueError, match=f"^blocks: .*{words}"):
        nh.Hessian.from_blocks(*blocks())


def test_more_malformed_arguments():
    blocks, terminal = random_chain(0, 5, (3, 2))
    for wrong, error in ((7, TypeError), ([1, 2], TypeError)):
        with pytest.raises(error, match="^blocks: "):
            nh.Hessian.from_blocks(wrong)
    for wrong in (np.eye(2), np.full((3, 3), np.nan), np.arange(9.0).reshape(3, 3)):
        with pytest.raises(ValueError, match="^terminal: "):
            nh.Hessian.from_blocks(blocks, wrong)
    H = nh.Hessian.from_blocks(blocks, terminal)
    for wrong, error in ((5, IndexError), (-6, IndexError), (1.0, TypeError)):
        with pytest.raises(error, match="^l: "):
            H.blocks(wrong)


def test_rounding_in_symmetric_blocks_is_taken_out():
    blocks, terminal = changed(3, "Dxx", (0, 1), 0.5)
    fields = {field: getattr(blocks[3], field).copy() for field in nh.LayerBlocks.__slots__}
    fields["Dxx"][1, 0] = 0.5 * (1 + 1e-12)
    before = fields["Dxx"].copy()
    blocks[3] = nh.LayerBlocks(**fields)
    found = nh.Hessian.from_blocks(blocks, terminal).blocks(3).Dxx
    assert found[0, 1] == found[1, 0] and abs(found[0, 1] - 0.5) < 1e-12
    np.testing.assert_array_equal(fields["Dxx"], before)


# ---- stacks: the blocks of all layers in arrays ---------------------------------------------------------------------

NAMES = nh.LayerBlocks.__slots__


def stacks(blocks):
    return {name: np.stack([getattr(block, name) for block in blocks]) for name in NAMES}


def equal_chain(dtype=np.float64, L=7, a=3, p=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (a, p), (a, a), (p, p), (p, a), (a, a)
    squares = [rng.standard_normal((L, *shape)).astype(dtype) for shape in shapes]
    for at in (2, 4):
        squares[at] = squares[at] + squares[at].transpose(0, 2, 1)
    return [nh.LayerBlocks(*(square[l] for square in squares)) for l in range(L)], symmetric(rng, a).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_stacks_are_the_same_as_layers(dtype):
    blocks, terminal = equal_chain(dtype)
    expected = nh.Hessian.from_blocks(blocks, terminal)
    given = stacks(blocks)
    wide = {name: np.repeat(stack, 2, axis=2)[:, :, ::2] for name, stack in given.items()}
    fixed = {name: stack.copy() for name, stack in given.items()}
    for stack in fixed.values():
        stack.flags.writeable = False
    ragged = {name: [getattr(block, name) for block in blocks] for name in NAMES}
    mixed = {**given, "Dz": list(given["Dz"])}
    for form in (given, wide, fixed, ragged, mixed):
        before = {name: [np.array(one) for one in form[name]] for name in NAMES}
        H = nh.Hessian.from_blocks(terminal=terminal, **form)
        assert H.dtype == expected.dtype == dtype
        for one, other in zip(H.system.lin, expected.system.lin):
            np.testing.assert_array_equal(one, other)
        assert all(np.array_equal(before[name], np.array(form[name])) for name in NAMES)
        assert not any(np.shares_memory(block, form["Dx"][0]) for block in H.system.lin)
    A = dense(blocks, terminal.astype(np.float64))
    tolerance = 1e-14 if dtype == np.float64 else 1e-6
    assert np.abs(expected.todense() - A).max() < tolerance * np.abs(A).max()


def test_sequences_of_layers_of_many_sizes():
    blocks, terminal = random_chain(4)
    arrays = {name: [getattr(block, name) for block in blocks] for name in NAMES}
    H = nh.Hessian.from_blocks(terminal=terminal, **arrays)
    np.testing.assert_array_equal(H.todense(), nh.Hessian.from_blocks(blocks, terminal).todense())


def test_one_layer_may_take_states_of_another_number():
    rng = np.random.default_rng(0)
    given = {"Dx": rng.standard_normal((1, 2, 3)), "Dz": np.zeros((1, 2, 5)), "Dxx": symmetric(rng, 3)[None]}
    given |= {"Dzx": np.zeros((1, 3, 5)), "Dzz": np.zeros((1, 5, 5))}
    H = nh.Hessian.from_blocks(terminal=np.eye(2), **given)
    Dx = given["Dx"][0]
    np.testing.assert_allclose(H.todense(), given["Dxx"][0] + Dx.T @ Dx, atol=1e-14)


def test_wrong_stacks():
    blocks, terminal = equal_chain()
    given = stacks(blocks)
    for change, error, message in (
        ({"Dx": None}, TypeError, "no Dx"),
        ({"Dzz": None}, TypeError, "no Dzz"),
        ({"blocks": blocks}, TypeError, "both"),
        ({"Dz": given["Dz"][:, :, :2]}, ValueError, r"Dz: expected shape \(7, 3, 3\)"),
        ({"Dxx": given["Dxx"][:6]}, ValueError, "Dxx: expected shape"),
        ({"Dx": 3.0}, TypeError, "Dx: expected an array"),
        ({"Dzx": list(given["Dzx"])[:5]}, ValueError, "Dzx: expected 7 matrices"),
        ({"Dx": given["Dx"].astype(complex)}, TypeError, "Dx: expected an array of real numbers"),
        ({name: stack[:0] for name, stack in given.items()}, ValueError, "at least one layer"),
    ):
        with pytest.raises(error, match=message):
            nh.Hessian.from_blocks(terminal=terminal, **{**given, **change})
    for name in NAMES:
        for bad in (np.nan, np.inf):
            wrong = given[name].copy()
            wrong[5, 2, 1] = bad
            with pytest.raises(ValueError, match=rf"in {name} of layer 5 at index \(2, 1\)"):
                nh.Hessian.from_blocks(terminal=terminal, **{**given, name: wrong})
    wrong = given["Dzz"].copy()
    wrong[4, 2, 0] += 1e-3
    with pytest.raises(ValueError, match="Dzz of layer 4 to be symmetric"):
        nh.Hessian.from_blocks(terminal=terminal, **{**given, "Dzz": wrong})


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 17, 40])
def test_means_of_blocks_and_their_transposes(n):
    rng = np.random.default_rng(n)
    squares = rng.uniform(-1.0, 1.0, (5, n, n)) * 10.0 ** np.array([[[0]], [[-300]], [[308]], [[5]], [[0]]])
    means, found = np.empty(squares.size), np.empty((5, 2))
    with np.errstate(over="ignore"):
        symmetric_means(squares.ravel(), np.full(5, n), means, found)
        across = squares.transpose(0, 2, 1)
        np.testing.assert_array_equal(found[:, 0], np.abs(squares - across).max(axis=(1, 2)))
    np.testing.assert_array_equal(found[:, 1], np.abs(squares).max(axis=(1, 2)))
    np.testing.assert_array_equal(means.reshape(squares.shape), 0.5 * squares + 0.5 * across)
