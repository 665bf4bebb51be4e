"""Pages of docs/ whose blocks of Python are one script: it runs, and prints what its text says."""

import re

import numpy as np
import pytest
from test_examples import ROOT, run

import numba_hinv as nh


def script(page):
    """The blocks of a page, in their order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))


def test_pytorch(tmp_path):
    pytest.importorskip("torch")
    output = run(["-W", "ignore::UserWarning:torch", "-c", script("pytorch.md")], tmp_path)
    loss, before = map(float, re.search(r"^(\S+) from (\S+)$", output, re.M).groups())
    assert loss < before
    assert "(External(Block, in_features=8, out_features=8, num_params=88), Dense(in_features=8" in output
    assert "Tensor torch.float64 torch.float64 torch.float32" in output
    assert "['Conv2d', 'MaxPool2d', 'Conv2d', 'MaxPool2d', 'Dense']" in output
    assert float(re.search(r"^(\d\S*)$", output, re.M)[1]) < 1e-12
    slope, difference = (float(re.search(rf"{name} (\S+)$", output, re.M)[1]) for name in ("strength", "differences"))
    # Central differences with a step of 5e-4 of the strength: its square, times a factor of the third derivative.
    assert abs(slope - difference) < 2e-5 * abs(slope)


def test_solves_in_autograd():
    """The recipe of docs/pytorch.md, against differences, once and twice differentiated."""
    torch = pytest.importorskip("torch")
    block = next(block for block in re.findall(r"^class Solve.*?(?=^\w)", script("pytorch.md"), re.M | re.S))
    scope = {"torch": torch}
    exec(block, scope)
    net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "softmax_cross_entropy")
    params, X, y = net.init(0), np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 1, 1, 0, 1])
    factors = net.hessian(params, X, y).factorize(0.5)
    generator = torch.Generator().manual_seed(0)
    for shape in ((net.num_params,), (net.num_params, 2)):
        b = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

        def cubed(b):
            return scope["Solve"].apply(b, factors).pow(3).sum()

        assert torch.autograd.gradcheck(cubed, (b,), rtol=1e-5)
        assert torch.autograd.gradgradcheck(cubed, (b,), rtol=1e-5)


def test_jax(tmp_path):
    pytest.importorskip("jax")
    pytest.importorskip("flax")
    pytest.importorskip("optax")
    output = run(["-c", script("jax.md")], tmp_path)
    loss, before = map(float, re.search(r"^(\S+) from (\S+)$", output, re.M).groups())
    after = float(re.search(r"^(\S+) after a step", output, re.M)[1])
    assert loss < before and after < before
    assert "Dense(in_features=8, out_features=8, activation='tanh', bias=True, skip=True)" in output
    assert "Dense(in_features=4, out_features=6, activation='gelu_by_tanh', bias=True, skip=False)" in output
    assert re.search(r"^jax\w* float64$", output, re.M)
    differences = [float(number) for number in re.findall(r"^(\d\S*)$", output, re.M)]
    assert len(differences) == 2 and differences[0] < 1e-14 and differences[1] < 1e-10


def test_solves_in_jax():
    """The recipe of docs/jax.md: values, reverse mode once and twice, and many right-hand sides, compiled and not."""
    jax = pytest.importorskip("jax")
    block = next(block for block in re.findall(r"^def solver.*?(?=^\w)", script("jax.md"), re.M | re.S))
    scope = {"jax": jax, "np": np}
    exec(block, scope)
    net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "softmax_cross_entropy")
    params, X, y = net.init(0), np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 1, 1, 0, 1])
    factors = net.hessian(params, X, y).factorize(0.5)
    inverse = factors.solve(np.eye(net.num_params))
    solve = scope["solver"](factors)
    B = np.random.default_rng(1).standard_normal((3, net.num_params))

    def cubed(b):
        return (solve(b) ** 3).sum()

    def gradient(b):
        x = inverse @ b
        return inverse @ (3 * x**2)

    with jax.enable_x64(True):
        for function in (solve, jax.jit(solve)):
            np.testing.assert_allclose(function(B[0]), inverse @ B[0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(jax.jit(jax.vmap(solve))(B), B @ inverse, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(jax.jit(jax.grad(cubed))(B[0]), gradient(B[0]), rtol=1e-12, atol=1e-13)
        second = jax.jit(jax.grad(lambda b: jax.numpy.vdot(jax.grad(cubed)(b), B[1])))(B[0])
        exact = inverse @ (6 * (inverse @ B[0]) * (inverse @ B[1]))
        np.testing.assert_allclose(second, exact, rtol=1e-12, atol=1e-12)
    narrow = solve(np.float32(B[0]))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, inverse @ B[0], rtol=1e-4, atol=1e-6)


def test_scikit_learn(tmp_path):
    pytest.importorskip("sklearn")
    output = run(["-c", script("scikit_learn.md")], tmp_path)
    noise = float(re.search(r"noise (\S+),", output)[1])
    inside, outside = map(float, re.search(r"inside (\S+) outside (\S+)$", output, re.M).groups())
    # 90 of 100 normal numbers lie within 1.64 standard deviations.
    assert 0.05 < noise < 0.2 and 3.2 * noise < inside < 2 * 3.3 * noise < outside
    assert re.search(r"^\d+ negative eigenvalues$", output, re.M)


def test_convolutions(tmp_path):
    pytest.importorskip("sklearn")
    output = run(["-c", script("convolutions.md")], tmp_path)
    assert "[(6, 1, 3, 3), (16, 6, 3, 3), (10, 64)]" in output
    assert float(re.search(r"^(\S+) of the other digits", output, re.M)[1]) > 0.85
    method, negative, residual = re.search(r"^(layers|dense) (\d+) (\S+)$", output, re.M).groups()
    assert method == "dense" and negative == "0" and float(residual) < 1e-12
    assert re.search(r"^\[2\. 0\. 0\. 0\.\]$", output, re.M)
    assert float(re.search(r"differ by (\S+)$", output, re.M)[1]) < 1e-9


def test_scipy(tmp_path):
    output = run(["-c", script("scipy.md")], tmp_path)
    success, size, _, negative = re.search(r"^trust_region (\S+) (\S+) (\d+) (\d+)$", output, re.M).groups()
    assert success == "True" and float(size) <= 1e-8 and negative == "0"
    losses = [float(loss) for loss in re.findall(r"^loss of \S+ (\S+)$", output, re.M)]
    # Minima of one net, not always the same one.
    assert len(losses) == 5 and max(losses) < 1.2 * min(losses)
    steps = {
        name: (int(count), float(rest))
        for name, count, rest in re.findall(r"^(\w+) factors (\d+) steps (\S+)$", output, re.M)
    }
    # minres ends at rtol ||H|| ||x||, and b has a norm of 12.
    assert 5 * steps["with"][0] < steps["without"][0] and max(rest for _, rest in steps.values()) < 1e-3
    whole, last = map(float, re.search(r"^trace (\S+) of the last layer (\S+)$", output, re.M).groups())
    assert 0 < last < whole
    assert "(60, 3, 139) (60, 4, 4)" in output


def test_frozen_layers(tmp_path):
    output = run(["-c", script("frozen_layers.md")], tmp_path)
    assert "unknowns 51 influences (200, 5)" in output and "solution (51,)" in output
    assert "trainable 51 frozen 352" in output
    assert "same submatrix True" in output and "and back True" in output
    assert "Network(2 layers, 51 parameters, 80 frozen" in output


def test_priors(tmp_path):
    output = run(["-c", script("priors.md")], tmp_path)
    assert "gradient below True residual below True" in output
    assert "log evidence grows True one a layer (3,)" in output and "weights and biases (3, 2)" in output
    assert "distance 0.1" in output


def test_hypergradients(tmp_path):
    """Slopes are those of training again, and steps along them lead down."""
    output = run(["-c", script("hypergradients.md")], tmp_path)
    assert "(60,) (60, 3) (60,)" in output
    for name, exactness in (("l2", 1e-4), ("weight", 1e-3)):
        slope, difference = map(float, re.search(rf"^{name} (\S+) (\S+)$", output, re.M).groups())
        assert abs(slope - difference) < exactness * abs(difference)
    after, before = map(float, re.search(r"validation loss (\S+) from (\S+)$", output, re.M).groups())
    assert after < before
    assert abs(float(re.search(r"their sum (\S+)$", output, re.M)[1])) < 1e-8


def test_training(tmp_path):
    output = run(["-c", script("training.md")], tmp_path)
    assert "the gradient's norm is at most gtol" in output
    assert float(re.search(r"^gradient (\S+) after", output, re.M)[1]) <= 1e-10
    fits = re.findall(r"^acceleration (\w+) factorizations (\d+) gradient (\S+)$", output, re.M)
    assert [name for name, *_ in fits] == ["True", "False"]
    assert int(fits[0][1]) < int(fits[1][1]) and float(fits[0][2]) <= 1e-8 < float(fits[1][2])
    count = int(re.search(r"^at the saddle: False (\d+) negative eigenvalues$", output, re.M)[1])
    loss, before = map(float, re.search(r"^down from it: True loss (\S+) from (\S+)$", output, re.M).groups())
    assert count > 0 and loss < 0.5 * before


def test_tutorial(tmp_path):
    output = run(["-c", script("tutorial.md")], tmp_path)
    assert "Inertia(negative=0, zero=0, positive=151, exact=True)" in output
    residual, error = re.search(r"^\(151, 151\) dense\n(\S+)\n(\S+) \S+$", output, re.M).groups()
    assert float(residual) < 1e-9 and float(error) < 1e-15
    after, before = map(float, re.search(r"^(\S+) after (\S+)$", output, re.M).groups())
    assert after < before


def test_damping(tmp_path):
    output = run(["-c", script("damping.md")], tmp_path)
    assert "singular to working precision with damping=0" in output and "7 eigenvalues that are 0" in output


def test_eigenvalues(tmp_path):
    output = run(["-c", script("eigenvalues.md")], tmp_path)
    assert "parameters 7666" in output
    found, counted = re.search(r"^above 1: (\d+) by the count (\d+)$", output, re.M).groups()
    assert found == counted != "0"
    counts = [int(count) for count in re.search(r"^below \[(.*)\]$", output, re.M)[1].split()]
    assert counts == sorted(counts) and 0 < int(re.search(r"^negative (\d+)$", output, re.M)[1]) <= counts[2]
    inside, on_edges = map(int, re.search(r"^counted (\d+) of them on an edge (\d+)$", output, re.M).groups())
    assert 0 < on_edges <= counts[2] - counts[1] and on_edges < inside <= 7666


def test_influence(tmp_path):
    """Of a trained net: the odd sample is found, and what is predicted of it is near the truth."""
    output = run(["-c", script("influence.md")], tmp_path)
    assert "trained True" in output and "(80, 200)" in output
    assert "explained least by the others: 0" in output and "most harmful on the whole: 0" in output
    predicted, again = map(float, re.search(r"^predicted (\S+) trained again (\S+)$", output, re.M).groups())
    better = float(re.search(r"^with its leverage (\S+)$", output, re.M)[1])
    assert predicted < 0 and again < 0 and abs(better - again) < abs(predicted - again) < abs(again)


def test_chains(tmp_path):
    output = run(["-c", script("chains.md")], tmp_path)
    assert "negative 0\n" in output and "same answer True" in output
    assert float(re.search(r"^residual (\S+)$", output, re.M)[1]) < 1e-12


def test_laplace(tmp_path):
    """The noise, 0.1, is found; there is less doubt inside the data than outside."""
    output = run(["-c", script("laplace.md")], tmp_path)
    assert "trained True" in output
    before = float(re.search(r"^log evidence (\S+)$", output, re.M)[1])
    noise, after = map(float, re.search(r"noise (\S+) evidence (\S+)$", output, re.M).groups())
    assert after > before and 0.07 < noise < 0.14
    inside, outside = map(float, re.search(r"inside the data (\S+) outside (\S+)$", output, re.M).groups())
    assert 2 * inside < outside


def test_custom_layers(tmp_path):
    output = run(["-c", script("custom_layers.md")], tmp_path)
    assert float(re.search(r"^residual (\S+)$", output, re.M)[1]) < 1e-12
    assert "Network(2 layers, 13 parameters" in output


def test_gpu(tmp_path):
    """With a GPU or without: there is an answer, and where none is found, a reason."""
    output = run(["-c", script("gpu.md")], tmp_path)
    device, error = re.search(r"^(cpu|cuda) (\S+)$", output, re.M).groups()
    assert float(error) < 1e-14 and (device == "cuda" or "cuda" in output)


def test_embedded(tmp_path):
    output = run(["-c", script("embedded.md")], tmp_path)
    assert output.startswith("(0, 0) [0.99") and "all as the first True" in output


def test_every_page_and_name_is_listed():
    """Each page in a table of contents, each public name in the interface."""
    docs = ROOT / "docs"
    tables = re.findall(
        r"^```{toctree}\n(.*?)^```", "".join(p.read_text("utf-8") for p in docs.glob("*.md")), re.M | re.S
    )
    listed = {line for table in tables for line in table.splitlines()} | {"index"}
    assert {page.stem for page in docs.glob("*.md")} <= listed
    names = set(re.findall(r"^   (\w+)$", (docs / "api.rst").read_text("utf-8"), re.M))
    assert set(nh.__all__) - {"__version__"} <= names
    assert all(hasattr(nh, name) for name in names - {"NetClassifier", "NetRegressor"})
    for module in ("embedded", "losses"):
        listed = set(re.findall(rf"^   {module}\.(\w+)$", (docs / "api.rst").read_text("utf-8"), re.M))
        of_module = getattr(nh, module)
        assert listed == {name for name in of_module.__all__ if not isinstance(getattr(of_module, name), int)}
