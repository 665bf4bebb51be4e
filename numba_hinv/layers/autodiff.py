"""First and second derivatives of compiled functions, by evaluating them with hyper-dual numbers (`hyperdual`).

What such a function may call is in `elementary`.
"""

from numba.extending import register_jitable

from ..kernels.plumbing.memory import matrix
from . import elementary  # noqa: F401 - lets functions of math and NumPy take numbers
from .hyperdual import LANES, STRIDE, numbers


def work_size(in_features, out_features, num_params):
    """Scalars of workspace that `jacobian_of` and `curvature_of` need."""
    return STRIDE * (num_params + in_features + out_features)


@register_jitable
def _constants(z, x, work):
    """x, then z, as rows of numbers without derivatives."""
    p = x.size
    rows = matrix(work, 0, p + z.size, STRIDE)
    rows[:] = 0.0
    for i in range(p):
        rows[i, 0] = x[i]
    for i in range(z.size):
        rows[p + i, 0] = z[i]
    return rows


def jacobian_of(function):
    """``jacobian(z, x, Dz, Dx, work)``, which fills the derivatives of ``function(z, x, out)``.

    (p + n_in) / LANES evaluations, each of about 5 LANES times the work of a plain one; ``work`` as `work_size` says.
    """

    @register_jitable
    def jacobian(z, x, Dz, Dx, work):
        p, N, n_out = x.size, x.size + z.size, Dz.shape[0]
        rows = _constants(z, x, work)
        out_rows = matrix(work, N * STRIDE, n_out, STRIDE)
        arguments = numbers(rows)
        out = numbers(out_rows)
        for start in range(0, N, LANES):
            for j in range(start, min(start + LANES, N)):
                rows[j, 2 + j - start] = 1.0
            function(arguments[p:], arguments[:p], out)
            for j in range(start, min(start + LANES, N)):
                rows[j, 2 + j - start] = 0.0
                for a in range(n_out):
                    if j < p:
                        Dx[a, j] = out_rows[a, 2 + j - start]
                    else:
                        Dz[a, j - p] = out_rows[a, 2 + j - start]

    return jacobian


def curvature_of(function):
    """``curvature(z, x, g, Dxx, Dzx, Dzz, work)``, which adds the second derivatives of ``g . function(z, x, out)``.

    (p + n_in)^2 / (2 LANES) evaluations, each of about 5 LANES times the work of a plain one.
    """

    @register_jitable
    def curvature(z, x, g, Dxx, Dzx, Dzz, work):
        p, N = x.size, x.size + z.size
        rows = _constants(z, x, work)
        out_rows = matrix(work, N * STRIDE, g.size, STRIDE)
        arguments = numbers(rows)
        out = numbers(out_rows)
        for start in range(0, N, LANES):
            for j in range(start, min(start + LANES, N)):
                rows[j, 2 + j - start] = 1.0
            for i in range(min(start + LANES, N)):
                rows[i, 1] = 1.0
                function(arguments[p:], arguments[:p], out)
                rows[i, 1] = 0.0
                for j in range(max(i, start), min(start + LANES, N)):
                    bend = 0.0
                    for a in range(g.size):
                        bend += g[a] * out_rows[a, 2 + LANES + j - start]
                    if j < p:
                        Dxx[i, j] += bend
                        if j > i:
                            Dxx[j, i] += bend
                    elif i < p:
                        Dzx[i, j - p] += bend
                    else:
                        Dzz[i - p, j - p] += bend
                        if j > i:
                            Dzz[j - p, i - p] += bend
            for j in range(start, min(start + LANES, N)):
                rows[j, 2 + j - start] = 0.0

    return curvature
