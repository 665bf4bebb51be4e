"""The examples, and the README's, run as a reader would run them: as scripts, in a process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numba_hinv as nh

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def run(arguments, directory):
    """What a Python process prints; the package that it imports is the one under test."""
    paths = [str(Path(nh.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def row(output, name):
    """The columns of the printed table's row that starts with `name`."""
    line = next(line for line in output.splitlines() if line.strip().startswith(name))
    return line.strip()[len(name) :].split()


def test_quickstart(tmp_path):
    output = run([str(ROOT / "examples" / "quickstart.py")], tmp_path)
    deep, shallow = output.split("beside a dense solve")
    assert row(deep, "parameters P") == ["7,666"]
    negative, zero, positive = (
        int(count.replace(",", ""))
        for count in re.search(r"inertia.*?([\d,]+), ([\d,]+), ([\d,]+)$", deep, re.M).groups()
    )
    assert negative + zero + positive == 7666
    ours, dense = row(shallow, "negative eigenvalues of H + damping I")
    assert ours == dense
    ours, dense = row(shallow, "log of the determinant's size")
    assert ours == dense
    # The bounds on accuracy are tested elsewhere; here a condition number of 1e6 is allowed for.
    assert float(row(shallow, "difference of the two solutions")[0]) < 1e6 * 2266 * np.finfo(float).eps
    assert float(row(deep, "relative residual")[0]) < 1e6 * 1e-14


def test_digits_are_the_uci_test_set():
    """Counts per class and ranges as the data's authors state them."""
    with np.load(ROOT / "examples" / "data" / "digits.npz") as data:
        images, labels = data["images"], data["labels"]
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_depth_scaling(tmp_path):
    """The whole example at small depths, drawn into a folder of the test."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    output = run(
        [
            "-c",
            f"""
import sys
sys.path.insert(0, {str(ROOT / "examples")!r})
import depth_scaling
depth_scaling.DEPTHS, depth_scaling.SECONDS = (5, 8), 0.2
depth_scaling.PICTURE = "picture.png"
results = depth_scaling.run()
depth_scaling.draw(results)
for name, rows in results.items():
    print(name, max(residual for *_, residual in rows))
""",
        ],
        tmp_path,
    )
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert float(row(output, "numba_hinv")[0]) < 1e-10
    assert float(row(output, "dense (LAPACK)")[0]) < 1e-10


def test_optimal_control(tmp_path):
    """Ends upright, with undamped, quadratically convergent steps; gradient and Hessian are those of the cost."""
    pytest.importorskip("matplotlib")
    example = ROOT / "examples" / "optimal_control.py"
    output = run([str(example), "--steps", "150", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    table = np.array([line.split() for line in output.splitlines() if re.match(r" +\d", line)], float)
    _, cost, gradient, damping, negative, decrement, share, _ = table.T
    assert gradient[-1] < 1e-10
    assert negative[0] > 0 and ((negative > 0) == (damping > 0)).all() and (np.diff(cost) <= 1e-8).all()
    assert (damping[-4:] == 0).all() and (share[-3:-1] == 1).all()
    # The decrement, which no change of variables alters, is squared: times 36 to 75 where it was looked at.
    assert (decrement[-3:] < 300 * decrement[-4:-1] ** 2 + 1e-11).all()
    assert float(re.search(r"([\d.]+) degrees from upright", output)[1]) < 2.0
    check = run(
        [
            "-c",
            f"""
import sys
sys.path.insert(0, {str(example.parent)!r})
import numpy as np
import numba_hinv as nh
from optimal_control import START, derivatives, roll_out
def at(forces):
    states = np.tile(START, (forces.size + 1, 1))
    cost = roll_out(forces, 0.02, states)
    return cost, *derivatives(forces, 0.02, states)
rng = np.random.default_rng(0)
forces, v = rng.standard_normal(60), 1e-5 * rng.standard_normal(60)
_, gradient, blocks, terminal = at(forces)
ahead, behind = at(forces + v), at(forces - v)
product = nh.Hessian.from_blocks(blocks, terminal) @ v
print("slope", abs(ahead[0] - behind[0] - 2 * gradient @ v) / abs(2 * gradient @ v))
print("curvature", np.linalg.norm(ahead[1] - behind[1] - 2 * product) / np.linalg.norm(2 * product))
""",
        ],
        tmp_path,
    )
    # Central differences: the square of the step, 1e-9, times third derivatives that are about 1 here.
    assert float(row(check, "slope")[0]) < 1e-7
    assert float(row(check, "curvature")[0]) < 1e-7


def test_spectrum(tmp_path):
    pytest.importorskip("matplotlib")
    example = str(ROOT / "examples" / "spectrum.py")
    output = run([example, "--depths", "3", "8", "20", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    compared = re.findall(r"layers: (\d+) of ([\d,]+) eigenvalues are in other bins", output)
    assert [size for _, size in compared] == ["682", "1,042", "1,906"] and all(wrong == "0" for wrong, _ in compared)
    table = np.array([line.replace(",", "").split() for line in output.splitlines() if re.match(r" +\d", line)], float)
    assert table[:, :2].tolist() == [[3, 682], [8, 1042], [20, 1906]]
    assert (table[:, 2:5].sum(axis=1) == table[:, 1]).all() and table[:, 2:5].min() > 0


def test_saddles_along_training(tmp_path):
    """Exact figures are those of dense eigenvalues; the quadrature is right where it has to be."""
    pytest.importorskip("matplotlib")
    example = ROOT / "examples" / "saddles_along_training.py"
    output = run([str(example), "--depths", "6", "--checkpoints", "0", "20", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    table = [line.replace(",", "").split() for line in output.splitlines() if re.match(r" +\d", line)]
    assert [int(columns[0]) for columns in table] == [0, 20] and float(table[1][1]) < float(table[0][1])
    check = run(
        [
            "-c",
            f"""
import sys
sys.path.insert(0, {str(example.parent)!r})
import numpy as np
import saddles_along_training as example
X, y = example.load(example.BATCH)
net = example.skinny_net(6)
for step, params in example.train(net, net.init(rng=0), X, y, (0, 20)):
    H = net.hessian(params, X, y)
    values, norm = np.linalg.eigvalsh(H.todense()), H.norm()
    counts = [int((values < t * norm).sum()) for t in example.THRESHOLDS]
    print("dense", step, values[0], *counts, np.log(values - values[0] + example.DAMPING * norm).sum())
D = np.diag(np.linspace(-1.0, 2.0, 30))
functions = [np.ones_like, np.square, lambda values: values < 0.3]
print("traces", *example.quadrature(D, functions, 3, 30, np.random.default_rng(0)))
""",
        ],
        tmp_path,
    )
    dense = [line.split()[1:] for line in check.splitlines() if line.startswith("dense")]
    for ours, theirs in zip(table, dense):
        assert ours[0] == theirs[0] and float(ours[2]) == pytest.approx(float(theirs[1]), rel=1e-2)
        assert ours[4:8] == theirs[2:6] and float(ours[8]) == pytest.approx(float(theirs[6]), abs=0.01)
    # Signs of 1 weigh all eigenvalues of a diagonal matrix alike.
    expected = [30.0, np.square(np.linspace(-1.0, 2.0, 30)).sum(), 13.0]
    assert np.abs(np.array(row(check, "traces"), float) - expected).max() < 1e-10


def test_sparsity(tmp_path):
    """The matrices that are drawn have the solution, determinant and inertia of the library's."""
    pytest.importorskip("matplotlib")
    output = run([str(ROOT / "examples" / "sparsity.py"), "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert float(row(output, "lifted system against the exact solve")[0]) < 1e-10
    assert abs(float(row(output, "log-determinant by pivots, less the exact one")[0])) < 1e-8
    ours, exact = row(output, "negative eigenvalues, by pivots and exact")
    assert ours == exact != "0"


def test_hypergradients(tmp_path):
    """Few steps lead down, and away from wrong labels."""
    pytest.importorskip("matplotlib")
    example = str(ROOT / "examples" / "hypergradients.py")
    output = run([example, "--steps", "3", "4", "--decays", "3", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    first, decay, both = (
        float(row(output, f"gradient, {name}")[2]) for name in ("first step", "decay ", "decay and weights")
    )
    assert both < decay < first
    right, wrong = map(float, re.search(r"right label (\S+), with a wrong one (\S+)$", output, re.M).groups())
    assert wrong < 0.7 * right


def test_influence_digits(tmp_path):
    """Trained to the end, at a minimum; predictions have the sign of what training again gives."""
    pytest.importorskip("matplotlib")
    example = str(ROOT / "examples" / "influence_digits.py")
    output = run([example, "--train", "40", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert float(re.search(r"norm of the gradient (\S+)", output)[1]) < 1e-7
    assert "negative eigenvalues of H: 0;" in output
    changes = np.array(re.findall(r"a \d: (\S+) (\S+)$", output, re.M), float)
    assert changes.shape == (4, 2) and (changes[:, 0] < 0).all() and (changes[:, 1] < 0).all()


def test_embed_in_njit(tmp_path):
    output = run([str(ROOT / "examples" / "embed_in_njit.py"), "--ticks", "100"], tmp_path)
    differences = [float(value) for value in re.findall(r"difference to .*: (\S+)$", output, re.M)]
    assert len(differences) == 2 and max(differences) < 1e-12
    assert float(re.search(r"distance to the path +([\d.]+) m", output)[1]) < 0.05


def test_laplace_evidence(tmp_path):
    """The printed evidence is that of dense algebra, at a mode."""
    pytest.importorskip("matplotlib")
    example = ROOT / "examples" / "laplace_evidence.py"
    output = run([str(example), "--depths", "1", "2", "--starts", "1", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    table = np.array([line.split() for line in output.splitlines() if re.match(r" +\d", line)], float)
    assert table[:, 0].tolist() == [1, 2] and table[:, 2].tolist() == [78, 98]
    check = run(
        [
            "-c",
            f"""
import sys
sys.path.insert(0, {str(example.parent)!r})
import numpy as np
from laplace_evidence import features, fit, network
X, y, *_ = features()
net = network(2)
params, precision = fit(net, 0, X, y)
slope = 100 * net.gradient(params, X, y) + precision * params
for curvature in ("hessian", "ggn"):
    eigenvalues = np.linalg.eigvalsh(100 * net.hessian(params, X, y, curvature).todense()) + precision
    value = -100 * net.loss(params, X, y) - 0.5 * precision * params @ params
    print(curvature, value - 0.5 * np.log(eigenvalues / precision).sum())
print("slope", np.linalg.norm(slope))
""",
        ],
        tmp_path,
    )
    for column, name in ((4, "hessian"), (5, "ggn")):
        assert abs(float(row(check, name)[0]) - table[1, column]) < 0.006
    assert float(row(check, "slope")[0]) < 1e-5


def test_train_deep_skinny(tmp_path):
    """Training ends at a minimum, where L-BFGS alone comes less far; and the trial's target is reached."""
    output = run([str(ROOT / "examples" / "train_deep_skinny.py")], tmp_path)
    found = re.findall(r"^  (\S.*?) +\S+ s   loss +(\S+) +gradient (\S+) ", output, re.M)
    sizes = [float(size) for *_, size in found]
    assert len(found) == 4 and max(sizes[::2]) <= 1e-10 < min(sizes[1::2])
    assert output.count("negative eigenvalues of H there: 0 - the gradient's norm is at most gtol") == 2
    loss, iterations = re.search(r"a loss of (\S+) in .*? (\d+) iterations of L-BFGS", output).groups()
    assert float(loss) <= 1e-8 and int(iterations) > 0


def test_train_deep_skinny_in_full(tmp_path):
    """All methods with a hundredth of the time; every method starts from the same loss and gradient."""
    pytest.importorskip("matplotlib")
    example = ROOT / "examples" / "train_deep_skinny.py"
    output = run([str(example), "--full", "--share", "0.01", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert output.count("numba_hinv, levenberg-marquardt") == 3 and output.count("SciPy, L-BFGS-B") == 3
    assert float(row(output, "numba_hinv, trust-region")[0]) > 0.0
    check = run(
        [
            "-c",
            f"""
import sys
sys.path.insert(0, {str(example.parent)!r})
import numpy as np
import train_deep_skinny as example
for problem in example.problems():
    p = problem._replace(seconds=0.0, our_seconds=0.0)
    first = [example.ours(p, p.own[0])[0], example.scipy_method(p, "L-BFGS-B")[0]]
    if example.torch:
        first.append(example.torch_method(p, "Adam")[0])
    print("start", np.ptp([row[1:] for row in first], axis=0).max())
""",
        ],
        tmp_path,
    )
    # Two or three times the same loss and gradient, by other code.
    assert max(float(value) for value in re.findall(r"^start (\S+)$", check, re.M)) < 1e-12


def test_tune_l2(tmp_path):
    """The strength that is found has a lower loss than all others, and slopes are those of differences."""
    pytest.importorskip("torch")
    example = ROOT / "examples" / "tune_l2.py"
    output = run([str(example), "--tolerance", "0.1"], tmp_path)
    table = np.array([line.replace("%", "").split() for line in output.splitlines() if re.match(r" +\d", line)], float)
    best = table[np.abs(table[:, 3]).argmin()]
    assert float(row(output, "least loss on others at a strength of")[0]) == pytest.approx(best[0], rel=0.2)
    assert best[1] == table[:, 1].min() and table[0, 3] < 0 < table[1, 3]
    check = run(
        [
            "-c",
            f"""
import sys
sys.path.insert(0, {str(example.parent)!r})
import torch
from tune_l2 import Problem
problem = Problem()
logarithm = torch.tensor(1e-2, dtype=torch.float64).log().requires_grad_()
problem.judge(problem.trained(logarithm.exp()))[0].backward()
at = [problem.judge(problem.trained((logarithm.detach() + t).exp()))[0].item() for t in (1e-3, -1e-3)]
difference = (at[0] - at[1]) / 2e-3
print("slope", abs(difference - logarithm.grad.item()) / abs(difference))
""",
        ],
        tmp_path,
    )
    # Central differences: the square of the step, times third derivatives over first ones.
    assert float(row(check, "slope")[0]) < 1e-4


def test_leave_one_out(tmp_path):
    """Steps and training again agree, on the score and sample by sample, where the weight decay is strong."""
    pytest.importorskip("matplotlib")
    example = str(ROOT / "examples" / "leave_one_out.py")
    output = run([example, "--samples", "30", "--decays", "0.3", "0.2", "--picture", "picture.png"], tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    rows = re.findall(r"^ +(0\.\d+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\d+) of +30 +(\d+) of +(\d+)$", output, re.M)
    table = np.array(rows, float)
    assert table[:, 0].tolist() == [0.3, 0.2]
    assert np.abs(table[:, 2] - table[:, 3]).max() < 0.01 * table[:, 3].max()
    assert (table[:, 7] == table[:, 8]).all() and (table[:, 1] < table[:, 2]).all()


def test_readme(tmp_path):
    """Its one example trains to a minimum and finds the wrong label; it is short, and its links lead somewhere."""
    text = README.read_text(encoding="utf-8")
    output = run(["-c", "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))], tmp_path)
    assert output.splitlines() == ["True Inertia(negative=0, zero=0, positive=139, exact=True)", "17"]
    assert len(text.splitlines()) <= 180
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
