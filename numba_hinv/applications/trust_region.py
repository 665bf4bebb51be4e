"""The trust-region step: the minimiser of a quadratic model in a ball, with inertia as the test of definiteness.

The iteration of J. More and D. Sorensen (SIAM J. Sci. Stat. Comput. 4, 1983). Where they take bounds of eigenvalues
from rows of H, which are not at hand here, Ritz values serve: of a small Krylov space of H, and of factorizations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..certainty import inertia
from ..factorization import Factorization
from ..factors.elimination import no_tick
from ..hessian import Hessian
from ..runtime import representation
from ..runtime.annotations import Array, Tick
from ..runtime.probes import random_entries
from ..runtime.progress import bar
from ..runtime.validation import as_array, as_real
from ..system.processor import require_cpu
from .eigenvalues import as_hessian

# Blocks of the Krylov space of H that the first multiplier comes from: of the gradient and of a random vector.
_BLOCKS = 8
# Vectors of the Krylov space of F that improve the lowest eigenvector.
_INVERSE_STEPS = 5
# Units of ||H||. With smaller dampings elimination cannot be sure of signs.
_LEAST_DAMPING = 1e-10
# Multipliers closer than this to minus the lowest eigenvalue are the hard case: the factors cannot resolve the pole.
_POLE = 1e-9
# How far the matrix that is shown to be definite may be from the singular one in the hard case.
_DEFINITE_WITHIN = 1e-8
_MARGIN = 1e-6
# Residual of the lowest eigenvector, and how often inverse iteration begins anew.
_CONVERGED, _RESTARTS = 1e-11, 4
# Up to this share, the length of a step is mended to first order.
_STRETCH = 1e-4
# Norms of the step that exceed the radius by this share: Newton's method ends with the factors at hand.
_NEAR = 0.5
_MAX_FACTORIZATIONS = 60
_MAX_NEWTON = 30


class TrustRegionStep(NamedTuple):
    """The step that `trust_region_step` finds.

    Attributes
    ----------
    step : (P,) array
        The step.
    multiplier : float
        ``(H + multiplier I) step = -gradient``, with a positive semidefinite matrix.
    predicted_decrease : float
        By how much the model decreases: ``-gradient^T step - step^T H step / 2``.
    hard_case : bool
        Whether the gradient has hardly any part along the lowest eigenvector, so that a multiple of that eigenvector
        was added to the step.
    on_boundary : bool
        Whether the step is as long as the radius.
    num_factorizations : int
        How many factorizations were needed.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> found = nh.trust_region_step(net.hessian(np.zeros(3), X, y), radius=0.5)
    >>> round(float(np.linalg.norm(found.step)), 6), found.hard_case
    (0.5, False)
    """

    step: np.ndarray
    multiplier: float
    predicted_decrease: float
    hard_case: bool
    on_boundary: bool
    num_factorizations: int

    def __repr__(self) -> str:
        return representation.line(type(self).__name__, self._asdict())

    def _repr_html_(self) -> str:
        return representation.table(type(self).__name__, self._asdict())


def trust_region_step(
    H: Hessian,
    radius: float,
    gradient: ArrayLike | None = None,
    multiplier: float | None = None,
    rtol: float = 1e-10,
    progress: bool | None = None,
) -> TrustRegionStep:
    """Minimise ``gradient^T p + p^T H p / 2`` over ``||p|| <= radius``, globally and exactly.

    Parameters
    ----------
    H : Hessian
        The Hessian, which may be indefinite or singular.
    radius : float
        The radius of the ball; positive.
    gradient : (P,) array, optional
        By default the gradient that ``H`` has; it must be given if H was made from blocks.
    multiplier : float, optional
        A first guess of the multiplier, such as that of the last step; at least 0. It saves the products that finding
        a guess costs otherwise.
    rtol : float
        The relative accuracy to which the length of a step on the boundary equals the radius, from 0 to 0.5. For
        training, 0.1 is accurate enough.
    progress : bool, optional
        Show a progress bar of the factorizations, for which tqdm must be installed;
        by default what `set_progress` says.

    Returns
    -------
    TrustRegionStep
        The step, its multiplier and the decrease that it promises.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected, or H has no gradient and none is given.
    numpy.linalg.LinAlgError
        The multiplier overflows.

    See Also
    --------
    minimize : Training with such steps.

    Notes
    -----
    ``p`` is the answer if and only if ``(H + multiplier I) p = -gradient``, where ``H + multiplier I`` is positive
    semidefinite and either multiplier = 0 or ``||p|| = radius``. Definiteness is shown by the inertia of a
    factorization at the multiplier, or at one that is at most half as far again from the singular matrix. Then the
    value of the model is the minimum up to a relative error of about ``rtol^2`` and rounding. In the hard case it is
    shown to be the minimum to 1e-8 ||H|| radius^2, and is so up to rounding if the lowest eigenvector, which inverse
    iteration finds, is that accurate. If H is singular because no sample depends on some parameters, eigenvalues closer
    to 0 than 1e-10 ||H|| cannot be told from 0: the answer then is the limit for small multipliers, which is the
    shortest step.

    Costs one to three factorizations as a rule, and 16 products with H for a first guess.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> found = nh.trust_region_step(net.hessian(np.zeros(3), X, y), radius=0.5)
    >>> net.loss(found.step, X, y) < net.loss(np.zeros(3), X, y)
    True
    """
    model = QuadraticModel(H, gradient)
    with bar(progress, None, "trust_region_step", "factorization") as shown:
        return model.step(radius, multiplier, rtol, shown.update)


class QuadraticModel:
    """``gradient^T p + p^T H p / 2``, for its minimisers in balls of one radius after the other.

    What a step finds out about H serves those that follow: its lowest eigenvalue with a vector, the largest multiplier
    that leaves it indefinite, and factors of a definite matrix.

    Parameters
    ----------
    H, gradient
        As for `trust_region_step`, and ValueError and TypeError likewise.
    """

    def __init__(self, H: Hessian, gradient: ArrayLike | None = None) -> None:
        self.H = as_hessian(H)
        if gradient is None:
            if H.gradient is None:
                raise ValueError("gradient: expected an array, since H was made from blocks and has none, got None")
            gradient = H.gradient
        self.gradient = as_array("gradient", gradient, (H.shape[0],), np.float64)
        self._last: _Search | None = None

    def step(
        self, radius: float, multiplier: float | None = None, rtol: float = 1e-10, tick: Tick = no_tick
    ) -> TrustRegionStep:
        """`TrustRegionStep`; the multiplier is a guess that counts for the first radius alone.

        ``tick(1)`` is called after every factorization.
        """
        H, g = self.H, self.gradient
        radius = as_real("radius", radius)
        if radius <= 0.0:
            raise ValueError(f"radius: expected a positive number, got {radius}")
        if multiplier is not None:
            multiplier = as_real("multiplier", multiplier)
            if multiplier < 0.0:
                raise ValueError(f"multiplier: expected at least 0, got {multiplier}")
        rtol = as_real("rtol", rtol)
        if not 0.0 <= rtol <= 0.5:
            raise ValueError(f"rtol: expected a number from 0 to 0.5, got {rtol}")
        require_cpu(H.system.on, "a trust-region step")
        exponent = _common_exponent(g, radius)
        with np.errstate(over="ignore"):
            search = _Search(H, np.ldexp(g, exponent), float(np.ldexp(radius, exponent)), rtol, self._last, tick)
        self._last = None
        p, multiplier, kind = search.run(multiplier)
        self._last = search
        with np.errstate(over="ignore", invalid="ignore"):
            decrease = search.decrease(p, exponent)
            step = np.ldexp(p, -exponent).astype(H.dtype, copy=False)
        if not (np.isfinite(decrease) and np.isfinite(step).all()):
            raise np.linalg.LinAlgError(f"radius: the step or what it promises overflows, with radius={radius:g}")
        return TrustRegionStep(
            step, float(multiplier), float(decrease), kind == "hard", kind != "interior", search.num_factorizations
        )


def _common_exponent(g: Array, radius: float) -> int:
    """The power of two that brings gradient and radius to either side of 1, where both have squares.

    They may be scaled together: the multiplier stays.
    """
    largest = float(np.abs(g).max())
    exponents = [int(np.frexp(size)[1]) for size in (largest or radius, radius)]
    return -(sum(exponents) // 2)


class _Search:
    """What is known of the multiplier and of the lowest eigenvalue."""

    def __init__(
        self, H: Hessian, g: Array, radius: float, rtol: float, last: "_Search | None" = None, tick: Tick = no_tick
    ) -> None:
        self.tick = tick
        self.H, self.g, self.radius, self.rtol = H, g, radius, max(rtol, 4 * np.finfo(float).eps)
        self.multiply = H.system.apply
        self.norm = H.norm()
        self.low, self.high = 0.0, np.inf
        self.lowest, self.residual = np.inf, np.inf
        self.vector: Any = None
        self.num_factorizations = self.failures = 0
        # The largest multiplier that is known to leave the matrix indefinite, and the last ones known to make it
        # definite, with their factors: they do not depend on the radius.
        self.indefinite = -np.inf
        self.definite: dict[float, Factorization | None] = {}
        # The least damping that can be eliminated with, and the guess of the Krylov space, once it is made.
        free = H.system.num_free() > 0
        self.least = max(0.0, _LEAST_DAMPING * self.norm - float(np.min(H.l2))) if free else 0.0
        self.guess: Any = None
        if last is not None:
            self.lowest, self.vector, self.residual = last.lowest, last.vector, last.residual
            self.indefinite, self.definite, self.least = last.indefinite, last.definite, last.least
            self.low = max(0.0, self.indefinite, -self.lowest)

    def run(self, multiplier: float | None) -> tuple[Array, float, str]:
        """(step, multiplier, "interior", "boundary" or "hard")."""
        if self.norm == 0.0:
            # H is zero.
            length = float(np.linalg.norm(self.g))
            if length == 0.0:
                return np.zeros_like(self.g), 0.0, "interior"
            return -self.radius / length * self.g, length / self.radius, "boundary"
        if self.definite:
            mu = max(self.definite)
        else:
            mu = self.first() if multiplier is None else multiplier
        while self.num_factorizations < _MAX_FACTORIZATIONS:
            mu = max(mu, self.least)
            if not np.isfinite(mu):
                raise np.linalg.LinAlgError(f"radius: the multiplier of steps of length {self.radius:g} overflows")
            was_known = mu in self.definite
            F, is_definite = self.factors(mu)
            if not is_definite:
                self.low, self.indefinite = max(self.low, mu), max(self.indefinite, mu)
                self.failures += 1
                if mu <= self.least:
                    self.least = max(self.least, _LEAST_DAMPING * self.norm)
                mu = self.above(F)
                if mu is None:
                    return self.hard()
                continue
            p, length, slope, change = self.step(F, mu)
            newton = mu + slope * (length / self.radius - 1.0)
            if length > self.radius:
                self.low = max(self.low, mu)
                if length <= (1.0 + _NEAR) * self.radius or newton <= mu:
                    return *self.finish(F, mu, p, length, slope, change), "boundary"
                # Factors of a larger radius may be far off; both guesses are below the answer as a rule.
                mu = max(newton, self.first()) if was_known and self.guess is None else newton
                continue
            if length >= (1.0 - self.rtol) * self.radius:
                return self.stretch(p, change), mu, "boundary"
            if mu <= self.least:
                return self.interior(F, mu, p, newton)
            self.high, self.F = mu, F
            if np.isinf(self.lowest):
                self.improve(F)
            # One that is too low costs a factorization; one that the lowest eigenvalue rules out costs none.
            if length and newton > max(self.low, self.least) and newton + self.lowest > _MARGIN * self.norm:
                mu = newton
                continue
            mu = self.below(F, p)
            if mu is None:
                return self.hard()
        raise np.linalg.LinAlgError(
            f"radius: no step of at most {self.radius:g} was found in {_MAX_FACTORIZATIONS} factorizations"
        )

    def decrease(self, p: Array, exponent: int) -> float:
        """What the model promises, in the caller's units; p may be too long or too short for its square."""
        size = int(np.frexp(np.abs(p).max())[1])
        unit = np.ldexp(p, -size)
        linear, square = float(self.g @ unit), float(unit @ self.multiply(unit[None])[0])
        return float(-np.ldexp(linear, size - 2 * exponent) - np.ldexp(0.5 * square, 2 * (size - exponent)))

    def factors(self, mu: float) -> tuple[Factorization | None, bool]:
        """What `factorize` gives, or gave for another radius."""
        if mu in self.definite:
            return self.definite[mu], True
        F, is_definite = self.factorize(mu)
        if is_definite:
            # Those of the answer, which are the last, lead to the steps of other radii.
            self.definite = {mu: F}
        return F, is_definite

    def factorize(self, mu: float) -> tuple[Factorization | None, bool]:
        """(factorization or None, whether it shows H + mu I to be positive definite)."""
        self.num_factorizations += 1
        try:
            F = self.H.factorize(mu, np.float64)
        except np.linalg.LinAlgError:
            return None, False
        finally:
            self.tick(1)
        # `inertia` would ask whether the number is certain, which takes a solve.
        if F.solver.num_negative_pivots():
            return F, False
        return F, F.inertia.exact or (F.num_perturbed > 0 and inertia.is_certified(F.solver))

    def solve(self, F: Any, mu: float, rows: Array) -> Array:
        """rows times the inverse of H + mu I, with the factors of a damping near mu."""
        k = F.solver.matrix.scale.matrix
        x = F.solver.refine(rows, np.dtype(np.float64), offset=float(np.ldexp(mu - F.damping, -k))).x
        return np.ldexp(x, -k, out=x)

    def step(self, F: Any, mu: float) -> tuple[Array, float, float, Array]:
        """(p, its length, slope of Newton's method, change): the latter is minus the derivative of p / ||p|| in mu."""
        p = -self.solve(F, mu, self.g[None])[0]
        length = float(np.linalg.norm(p))
        if length == 0.0:
            return p, 0.0, 0.0, p
        unit = p / length
        change = self.solve(F, mu, unit[None])[0]
        return p, length, 1.0 / float(unit @ change), change

    def finish(self, F: Any, mu: float, p: Array, length: float, slope: float, change: Array) -> tuple[Array, float]:
        """(step, multiplier): Newton's method from below with the factors of a smaller damping.

        1 / ||p|| is concave in the multiplier, so that the steps rise to the answer, all of definite matrices.
        """
        for _ in range(_MAX_NEWTON):
            newton = mu + slope * (length / self.radius - 1.0)
            if abs(length - self.radius) <= self.rtol * self.radius or newton <= mu:
                break
            mu = newton
            p, length, slope, change = self.step(F, mu)
        return self.stretch(p, change), mu

    def stretch(self, p: Array, change: Array) -> Array:
        """The step at the multiplier that makes its length the radius.

        Next to a pole, multipliers that differ by rounding have steps whose lengths differ by far more.
        """
        length = np.linalg.norm(p)
        if abs(length - self.radius) > _STRETCH * self.radius:
            return p
        change = change / np.abs(change).max()
        for _ in range(3):
            p = p - (length - self.radius) / float(p / length @ change) * change
            length = np.linalg.norm(p)
        return p

    def interior(self, F: Any, mu: float, p: Array, newton: float) -> tuple[Array, float, str]:
        """(step, multiplier, kind) where the least multiplier that can be eliminated with leaves the step inside."""
        if mu == 0.0:
            return p, 0.0, "interior"
        limit = -self.solve(F, 0.0, self.g[None])[0]
        remaining = np.linalg.norm(self.multiply(limit[None])[0] + self.g)
        # Where the gradient is not in the range of H there is no limit.
        if remaining <= 1e-12 * (self.norm * np.linalg.norm(limit) + np.linalg.norm(self.g)):
            if np.linalg.norm(limit) <= self.radius:
                return limit, 0.0, "interior"
        while mu > np.finfo(float).eps * self.norm:
            mu = max(newton, 0.1 * mu)
            p, length, slope, change = self.step(F, mu)
            if length >= self.radius:
                return *self.finish(F, mu, p, length, slope, change), "boundary"
            newton = mu + slope * (length / self.radius - 1.0)
        return p, mu, "interior"

    def first(self) -> float:
        """A first multiplier, from the model in a Krylov space of H; improves the lowest eigenvector."""
        rows = np.vstack([self.g[None], random_entries(5, self.g.size)])
        basis, products = _krylov_space(self.multiply, rows, _BLOCKS)
        values, vectors = self.rayleigh_ritz(basis, products)
        self.guess = secular_root(values, vectors.T @ (basis @ self.g), self.radius)
        if self.guess + self.lowest > 2.0 * self.residual:
            return self.guess
        return max(self.guess, self.margin() - self.lowest)

    def margin(self) -> float:
        return max(2.0 * self.residual, _MARGIN * self.norm) * 10.0 ** min(self.failures, 12)

    def improve(self, F: Any) -> None:
        """The lowest eigenvector from inverse iteration: a Krylov space of F."""
        if self.vector is None:
            self.vector = random_entries(5, self.g.size)[0]
        for _ in range(_RESTARTS):
            basis, _ = _krylov_space(F.solver.factors.substitute, self.vector[None], _INVERSE_STEPS)
            self.rayleigh_ritz(basis, self.multiply(basis))
            if self.residual <= _CONVERGED * self.norm:
                break

    def rayleigh_ritz(self, basis: Array, products: Array) -> tuple[Array, Array]:
        """Ritz values and vectors of H; the lowest is kept where it is not above the one that is known."""
        values, vectors = np.linalg.eigh(0.5 * (basis @ products.T + products @ basis.T))
        vector = vectors[:, 0] @ basis
        residual = float(np.linalg.norm(vectors[:, 0] @ products - values[0] * vector))
        if values[0] <= self.lowest + 1e-12 * self.norm:
            self.lowest, self.vector, self.residual = float(values[0]), vector, residual
            self.low = max(self.low, -self.lowest)
        return values, vectors

    def above(self, F: Any) -> float | None:
        """The next multiplier after one whose matrix is not definite; None if what is left is the hard case."""
        if self.guess is None and np.isinf(self.high):
            return max(self.first(), np.nextafter(self.low, np.inf))
        if np.isfinite(self.high):
            # Factors of a definite matrix lead to the lowest eigenvalue, others to any near the shift.
            self.improve(self.F)
            return self.between()
        if F is not None:
            self.improve(F)
        # The guess of the Krylov space is none where it has been tried, or is shown to be too low.
        least = max(self.low, -self.lowest) + self.margin()
        return max(least, self.guess)

    def below(self, F: Any, p: Array) -> float | None:
        """The next multiplier after a definite one that is too large; None if it is the hard case."""
        self.improve(F)
        if -self.lowest <= _LEAST_DAMPING * self.norm and self.low <= self.least:
            return self.least
        weight = abs(float(self.vector @ self.g))
        room = self.room(self.without(p))
        # The pole of the lowest eigenvalue alone. The rest grows, too: from here the multiplier is too low, if at all.
        pole = weight / room if room > 0.0 else np.inf
        if pole > _POLE * self.norm and self.low < pole - self.lowest < self.high:
            return pole - self.lowest
        return self.between()

    def room(self, across: Array) -> float:
        """How long a step along the lowest eigenvector may be, beside one across it; radii may have no square."""
        length = float(np.linalg.norm(across))
        return max(self.radius - length, 0.0) ** 0.5 * (self.radius + length) ** 0.5

    def without(self, p: Array) -> Array:
        """p without its part along the lowest eigenvector."""
        return p - float(self.vector @ p) * self.vector

    def between(self) -> float | None:
        """A multiplier closer to minus the lowest eigenvalue; None where it cannot be closer."""
        distance = self.high + self.lowest
        if distance <= _DEFINITE_WITHIN * self.norm * 10.0 ** min(self.failures, 4):
            return None
        if self.failures and self.residual > 0.1 * distance:
            return 0.5 * (self.low + self.high)
        nearest = max(_POLE * self.norm, self.low + self.lowest)
        if self.failures:
            nearest = (nearest * distance) ** 0.5
        mu = nearest - self.lowest
        return mu if self.low < mu < self.high else 0.5 * (self.low + self.high)

    def hard(self) -> tuple[Array, float, str]:
        """(step, multiplier, kind): the step across the lowest eigenvector, and as much along it as there is room."""
        self.improve(self.F)
        z = self.vector
        weight = float(z @ self.g)
        rest = (self.g - weight * z)[None]
        across = self.without(-self.solve(self.F, -self.lowest, rest)[0])
        if self.room(across) == 0.0:
            # Where the lowest eigenvalue is a multiple one, the singular matrix makes steps of rounding in the others.
            across = self.without(-self.solve(self.F, self.high, rest)[0])
        room = self.room(across)
        if room == 0.0:
            return across * (self.radius / np.linalg.norm(across)), self.high, "boundary"
        along = np.copysign(room, -weight)
        return across + along * z, max(0.0, abs(weight / along) - self.lowest), "hard"


def _krylov_space(apply: Callable[[Array], Array], rows: Array, num_blocks: int) -> tuple[Array, Array]:
    """Orthonormal rows of a block Krylov space of ``apply``, and their images."""
    basis, images = np.empty((0, rows.shape[1])), np.empty((0, rows.shape[1]))
    for _ in range(num_blocks):
        fresh: list[Array] = []
        for row in rows:
            length = np.linalg.norm(row)
            # Twice: once leaves what rounding makes of what is nearly in the space.
            for _ in range(2):
                row = row - (basis @ row) @ basis
                for other in fresh:
                    row = row - (other @ row) * other
            left = np.linalg.norm(row)
            if np.isfinite(left) and left > 1e-10 * length:
                fresh.append(row / left)
        if not fresh:
            break
        rows = apply(np.array(fresh))
        basis, images = np.vstack([basis, fresh]), np.vstack([images, rows])
    return basis, images


def secular_root(values: Array, weights: Array, radius: float) -> float:
    """The multiplier of the problem with a diagonal matrix, from below; minus the lowest value in the hard case."""
    least = max(0.0, -float(values.min()))
    mu = max(least, float((np.abs(weights) / radius - values).max()))
    for _ in range(_MAX_NEWTON):
        shifted = np.maximum(values + mu, 1e-100)
        p = np.divide(weights, shifted, out=np.zeros_like(weights), where=weights != 0.0)
        length = float(np.linalg.norm(p))
        if not length > radius * (1.0 + 1e-8) or not np.isfinite(length):
            break
        unit = p / length
        mu += (length / radius - 1.0) / float((unit * unit / shifted).sum())
    return mu
