"""`progress=True` and `set_progress`: complete bars, an error that names the extra, nothing imported otherwise."""

import builtins
import inspect
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh


class Recorder:
    """What the sweeps need of tqdm."""

    made = []

    def __init__(self, total, desc, unit, delay=0.0):
        self.total, self.desc, self.unit, self.done, self.closed = total, desc, unit, 0, False
        self.delay = delay
        Recorder.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def update(self, amount):
        self.done += amount


@pytest.fixture
def bars(monkeypatch):
    auto = pytest.importorskip("tqdm.auto")
    monkeypatch.setattr(auto, "tqdm", Recorder)
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


def test_bars_reach_their_end(bars):
    problem = chain(4, 30, batch=2)
    H = problem.hessian
    F = H.factorize(0.1, progress=True)
    C = H.factorize(0.1, checkpoint=True, progress=True)
    H.factorize_many([0.1, 0.2, 0.3], progress=True, num_threads=2)
    for G in (F, C):
        G.solve(problem.right_hand_side(70), progress=True)
        G.solve(problem.right_hand_side(), progress=True)
    L = len(problem.layers)
    assert [(bar.total, bar.unit) for bar in bars] == [
        (L, "layer"), (L, "layer"), (3 * L, "layer"), (70, "column"), (1, "column"), (70, "column"), (1, "column")
    ]  # fmt: skip
    assert all(bar.done == bar.total and bar.closed for bar in bars)


def test_an_interrupted_bar_is_closed(bars, monkeypatch):
    problem = chain(4, 30, batch=2)
    monkeypatch.setattr(Recorder, "update", lambda self, amount: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        problem.hessian.factorize(0.1, progress=True)
    assert bars[0].closed


def test_answers_are_the_same(bars):
    problem = chain(4, 12, batch=2)
    b = problem.right_hand_side(3)
    F, G = problem.hessian.factorize(0.1), problem.hessian.factorize(0.1, progress=True)
    np.testing.assert_array_equal(F.solve(b), G.solve(b, progress=True))


def test_without_tqdm(monkeypatch):
    problem = chain(3, 4)
    F, found = problem.hessian.factorize(1.0), builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (
        lambda: problem.hessian.factorize(1.0, progress=True),
        lambda: problem.hessian.factorize_many([1.0], progress=True),
        lambda: F.solve(problem.right_hand_side(), progress=True),
    ):
        with pytest.raises(ImportError, match=r"progress: expected tqdm .*numba_hinv\[progress\]"):
            call()
    problem.hessian.factorize(1.0)


@pytest.mark.parametrize("value", [1, "yes", 0.0])
def test_bad_flags(value):
    problem = chain(3, 4)
    with pytest.raises(TypeError, match="progress"):
        problem.hessian.factorize(1.0, progress=value)
    with pytest.raises(TypeError, match="progress"):
        problem.hessian.factorize(1.0).solve(problem.right_hand_side(), progress=value)


def test_tqdm_is_not_imported_unasked():
    code = """
        import sys, numpy as np, numba_hinv as nh
        net = nh.Network([nh.Dense(2, 2)], "mean_squared_error")
        F = net.hessian(net.init(), np.ones((1, 2)), np.ones((1, 2))).factorize(1.0)
        F.solve(np.ones(6))
        assert "tqdm" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.fixture
def session():
    nh.set_progress(True)
    yield
    nh.set_progress(False)


NET = nh.Network([nh.Dense(2, 6), nh.Dense(6, 1, "identity")], "mean_squared_error")
X, Y = np.random.default_rng(0).standard_normal((30, 2)), np.random.default_rng(1).standard_normal((30, 1))
DATA = NET.init(rng=2), X, Y


def a_laplace():
    return nh.Laplace(NET, *DATA, curvature="ggn", progress=False)


def a_hessian():
    return NET.hessian(*DATA, curvature="ggn", progress=False)


def a_factorization(damping=0.1, **options):
    return a_hessian().factorize(damping, progress=False, **options)


def minimised(objective, **options):
    import scipy.optimize

    return scipy.optimize.minimize(
        objective.loss_and_gradient, DATA[0], (X, Y), jac=True, hess=objective.hessian, method=nh.trust_region,
        options={"maxiter": 2, **options},
    )  # fmt: skip


def from_torch(**options):
    from torch import nn

    return nh.from_torch(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), "mean_squared_error", **options)


# What is called, and the names of the bars that it shows.
JOBS = {
    "loss": (lambda **o: NET.loss(*DATA, **o), ["loss"]),
    "gradient": (lambda **o: NET.gradient(*DATA, **o), ["gradient"]),
    "loss_and_gradient": (lambda **o: NET.loss_and_gradient(*DATA, **o), ["gradient"]),
    "batches": (lambda **o: NET.gradient(DATA[0], [(X[:20], Y[:20]), (X[20:], Y[20:])], **o), ["gradient"]),
    "hessian": (lambda **o: NET.hessian(*DATA, batch_size=10, **o), ["linearise"]),
    "dense factorization": (lambda **o: a_hessian().factorize(0.1, method="dense", **o), ["multiply", "factorize"]),
    "todense": (lambda **o: a_hessian().todense(**o), ["multiply"]),
    "diagonal": (lambda **o: a_hessian().diagonal(**o), ["diagonal"]),
    "trace": (lambda **o: a_hessian().trace(**o), ["diagonal"]),
    "block": (lambda **o: a_hessian().block(0, **o), ["block"]),
    "count_below": (lambda **o: a_hessian().count_below([0.3, 0.4], **o), ["count_below"]),
    "inverse": (lambda **o: a_factorization().todense(**o), ["solve"]),
    "variances": (lambda **o: a_factorization().diagonal(**o), ["diagonal"]),
    "covariance": (lambda **o: a_factorization().blocks(1, **o), ["blocks"]),
    "samples": (lambda **o: a_factorization().sample(3, **o), ["sample"]),
    "slogdet": (lambda **o: a_factorization(factor_dtype="float32").slogdet(**o), ["slogdet"]),
    "condition": (lambda **o: a_factorization().condition(**o), ["condition"]),
    "solve": (lambda **o: nh.solve(NET, *DATA, DATA[0], 10.0, **o), ["multiply", "factorize", "solve"]),
    "eigenvalues": (lambda **o: nh.eigenvalues(a_hessian(), 1, which="highest", **o), ["eigenvalues"]),
    "eigenvalues_in": (lambda **o: nh.eigenvalues_in(a_hessian(), 0.1, 9.0, **o), ["eigenvalues_in"]),
    "spectral_density": (lambda **o: nh.spectral_density(a_hessian(), [0.3, 0.4], **o), ["spectral_density"]),
    "trust_region_step": (lambda **o: nh.trust_region_step(a_hessian(), 0.5, **o), ["trust_region_step"]),
    "trust_region": (lambda **o: minimised(NET, **o), ["trust_region"]),
    "minimize": (lambda **o: nh.minimize(NET, *DATA, max_iterations=2, **o), ["minimize"]),
    "laplace": (lambda **o: nh.Laplace(NET, *DATA, curvature="ggn", **o), ["multiply", "factorize"]),
    "fit_prior": (lambda **o: a_laplace().fit_prior(**o), ["fit_prior"]),
    "fit_prior by layer": (lambda **o: a_laplace().fit_prior(per_layer=True, **o), ["fit_prior"]),
    "log_evidence": (lambda **o: a_laplace().log_evidence(**o), ["slogdet"]),
    "decrement": (lambda **o: a_laplace().decrement(**o), ["solve"]),
    "posterior": (lambda **o: a_laplace().sample(2, **o), ["sample"]),
    "posterior variances": (lambda **o: a_laplace().variances(**o), ["diagonal"]),
    "predict": (lambda **o: a_laplace().predict(X, **o), ["predict"]),
    "hypergradient": (
        lambda **o: nh.hypergradient(NET, DATA[0], (X, Y), (X, Y), ("l2", "X"), l2=5.0, **o), ["hypergradient"]
    ),
    "influence": (lambda **o: nh.influence(NET, *DATA, X[:4], Y[:4], 5.0, **o), ["multiply", "factorize", "influence"]),
    "leave_one_out": (
        lambda **o: nh.leave_one_out(NET, *DATA, l2=5.0, check=True, **o),
        ["multiply", "factorize", "solve", "leave_one_out"],
    ),
    "from_torch": (from_torch, ["from_torch"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", JOBS)
def test_jobs_show_their_bars(bars, name):
    if name == "from_torch":
        pytest.importorskip("torch")
    job, names = JOBS[name]
    job(progress=False)
    job()
    assert not bars
    job(progress=True)
    assert [bar.desc for bar in bars] == names
    assert all(bar.closed and bar.delay == 0.0 for bar in bars)
    # Training and trust regions stop when they are done, and bars of products and steps count what there was.
    ends = name not in ("trust_region", "minimize")
    assert all(bar.done == bar.total if bar.total and ends else bar.done >= 0 for bar in bars)
    unknown = {"slogdet", "condition", "eigenvalues", "trust_region_step", "fit_prior", "from_torch"}
    assert all(bar.total is None and bar.done > 0 for bar in bars if bar.desc in unknown - {"slogdet"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["condition", "eigenvalues", "leave_one_out", "minimize", "fit_prior", "solve"])
def test_a_session_shows_the_bars_of_whole_jobs(bars, session, name):
    job, names = JOBS[name]
    job()
    found = [bar.desc for bar in bars]
    assert found[-len(names) :] == names and all(bar.closed and bar.delay > 0.0 for bar in bars)
    # Preparations may have had theirs, before; no part of the job has one beside it.
    assert set(found) <= {*names, "factorize", "multiply", "solve"}


@pytest.mark.filterwarnings("ignore")
def test_a_session_says_nothing_where_a_call_is_silent(bars, session):
    H = a_hessian()
    nh.eigenvalues(H, 1, progress=False)
    nh.minimize(NET, *DATA, max_iterations=2, progress=False)
    nh.leave_one_out(NET, *DATA, l2=5.0, progress=False)
    nh.influence(NET, *DATA, X[:4], Y[:4], 5.0, leverage=True, progress=False)
    nh.solve(NET, *DATA, DATA[0], 10.0, progress=False)
    assert not bars


def test_a_job_that_fails_leaves_the_session_as_it_was(bars, session):
    with pytest.raises(ValueError):
        nh.minimize(NET, DATA[0], X, Y, max_iterations=1, callback=lambda result: [].index(1))
    bars.clear()
    a_factorization().condition()
    assert [bar.desc for bar in bars] == ["condition"]


def test_a_session_needs_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"^on: expected tqdm .*numba_hinv\[progress\]"):
        nh.set_progress(True)
    a_factorization().condition()
    for value in (1, None, "yes"):
        with pytest.raises(TypeError, match="^on: expected True or False"):
            nh.set_progress(value)


def test_every_public_progress_is_that_of_the_session_by_default():
    found = 0
    for name in nh.__all__:
        public = getattr(nh, name)
        members = [public]
        if inspect.isclass(public):
            members += [member for key, member in vars(public).items() if key[0] != "_" and key != "compute"]
        for member in filter(callable, members):
            try:
                parameter = inspect.signature(member).parameters.get("progress")
            except (TypeError, ValueError):
                continue
            if parameter is not None:
                assert parameter.default is None, member
                found += 1
    assert found >= 30
