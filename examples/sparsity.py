"""What the elimination exploits, drawn
====================================

What the elimination exploits, drawn: H, the lifted system, its block-tridiagonal order, and the fronts.

Run it with ``python examples/sparsity.py`` (extra: examples); it draws sparsity.png beside itself, in seconds. All
matrices are those of one small net, put together from its derivative blocks (`Hessian.blocks`), and checked: the lifted
system has the solution of ``(H + damping I) x = b``, and the pivots have the determinant and the inertia of that
matrix. The letters are those of docs/theory.md, sections 3, 7 and 11. May be changed freely: the constants are the
whole setting.

The blocks of the lifted system, which the paper eliminates, have p + 2 a rows, for p parameters and a activations of a
layer; the pivots here have at most as many as the batch has states in a layer.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend has to be chosen first
from matplotlib.colors import ListedColormap  # noqa: E402
from matplotlib.patches import Patch, Rectangle  # noqa: E402

INPUTS, WIDTH, LAYERS, OUTPUTS, SAMPLES = 5, 4, 5, 2, 2
DAMPING = 0.1
PICTURE = Path(__file__).with_suffix(".png")
# Kinds of entries, in the order of their numbers from 1 on.
KINDS = {
    "an entry of H": "0.45",
    "Dxx + damping I: parameters of a layer": "tab:blue",
    "Dx: what parameters do to states": "tab:green",
    "Dz: what states do to the next ones": "tab:olive",
    "Dzx: parameters and incoming states": "tab:purple",
    "Dzz and the loss's curvature: states": "tab:orange",
    "-I: a state and its multiplier": "tab:red",
    "M: pivot of a layer": "#1f3b70",
    "K: its coupling to the incoming states": "tab:purple",
    "P: front of the states that come in": "tab:orange",
}
NUMBER = {name.split(":")[0]: number for number, name in enumerate(KINDS, 1)}


def problem():
    """(network, parameters, H)"""
    rng = np.random.default_rng(0)
    layers = [
        nh.Dense(INPUTS, WIDTH),
        *[nh.Dense(WIDTH, WIDTH) for _ in range(LAYERS - 2)],
        nh.Dense(WIDTH, OUTPUTS, "identity"),
    ]
    net = nh.Network(layers, "mean_squared_error")
    params, X = net.init(rng=0), rng.standard_normal((SAMPLES, INPUTS))
    return net, params, X, net.hessian(params, X, rng.standard_normal((SAMPLES, OUTPUTS)))


class Lifted:
    """The lifted system of the parameters x, states z and multipliers q of all layers, and the kind of each entry.

    Its rows are those of the parameters, then those of the states, then those of the multipliers, layer by layer.
    """

    def __init__(self, H):
        blocks = [H.blocks(l) for l in range(H.num_layers)]
        p, a = ([getattr(block, "Dx").shape[k] for block in blocks] for k in (1, 0))
        starts = np.cumsum([0, *p, *a, *a])
        where = [slice(*pair) for pair in zip(starts[:-1], starts[1:])]
        self.x, self.z, self.q = (where[k * len(blocks) : (k + 1) * len(blocks)] for k in range(3))
        self.matrix, self.kind = np.zeros((starts[-1],) * 2), np.zeros((starts[-1],) * 2, int)
        for l, block in enumerate(blocks):
            self._put(self.x[l], self.x[l], block.Dxx + DAMPING * np.eye(p[l]), "Dxx + damping I")
            self._put(self.q[l], self.x[l], block.Dx, "Dx")
            self._put(self.q[l], self.z[l], -np.eye(a[l]), "-I")
            if l:
                self._put(self.x[l], self.z[l - 1], block.Dzx, "Dzx")
                self._put(self.q[l], self.z[l - 1], block.Dz, "Dz")
                self._put(self.z[l - 1], self.z[l - 1], block.Dzz, "Dzz and the loss's curvature")
        self._put(self.z[-1], self.z[-1], H.terminal, "Dzz and the loss's curvature")

    def _put(self, rows, columns, block, kind):
        """The block and, across the diagonal, its transpose."""
        self.matrix[rows, columns], self.matrix[columns, rows] = block, block.T
        self.kind[rows, columns] = np.where(block != 0.0, NUMBER[kind], 0)
        self.kind[columns, rows] = self.kind[rows, columns].T

    def solution(self, b):
        """The parameters' part of the solution, b being their part of the right-hand side."""
        right = np.zeros(len(self.matrix))
        right[: b.size] = b
        return np.linalg.solve(self.matrix, right)[: b.size]

    def groups(self):
        """Unknowns layer by layer: what comes in, the parameters, and the multipliers of what goes out."""
        indices = np.arange(len(self.matrix))
        parts = [(self.z[l - 1 : l] if l else []) + [self.x[l], self.q[l]] for l in range(len(self.x))] + [[self.z[-1]]]
        return [np.concatenate([indices[part] for part in group]) for group in parts]


def row_space(layer, Z):
    """T, with orthonormal columns: the parameters of a layer as a function of those that the batch can see, (p, m)."""
    n, n_in = layer.out_features, layer.in_features
    Q = np.linalg.qr(np.hstack([Z, np.ones((len(Z), 1))]).T)[0]
    T = np.zeros((layer.num_params, n * Q.shape[1]))
    for a in range(n):
        T[a * n_in : (a + 1) * n_in, a::n] = Q[:n_in]
        T[n * n_in + a, a::n] = Q[n_in]
    return T


def fronts(net, params, X, H):
    """(M, K, P) of every layer, from the last to the first: theory, sections 3 and 7."""
    inputs, P, found = [X], H.terminal, []
    for layer, (weight, bias) in zip(net.layers, net.unpack(params)):
        U = inputs[-1] @ weight.T + bias
        inputs.append(np.tanh(U) if layer.activation == "tanh" else U)
    for l in reversed(range(H.num_layers)):
        block, T = H.blocks(l), row_space(net.layers[l], inputs[l])
        M = block.Dxx + DAMPING * np.eye(len(block.Dxx)) + block.Dx.T @ P @ block.Dx
        K = block.Dzx + block.Dx.T @ P @ block.Dz
        P = block.Dzz + block.Dz.T @ P @ block.Dz - K.T @ np.linalg.solve(M, K)
        found.append((T.T @ M @ T, T.T @ K, P))
    return found


def check(H, lifted, layers):
    """Print how far the drawn matrices are from the library's answers."""
    F, b = H.factorize(DAMPING), np.random.default_rng(1).standard_normal(H.shape[0])
    x = F.solve(b)
    print(f"{'lifted system against the exact solve':<48}{np.abs(lifted.solution(b) - x).max() / np.abs(x).max():.1e}")
    free = H.shape[0] - sum(len(M) for M, *_ in layers)
    logarithm = sum(np.linalg.slogdet(M)[1] for M, *_ in layers) + free * np.log(DAMPING)
    print(f"{'log-determinant by pivots, less the exact one':<48}{logarithm - F.slogdet()[1]:.1e}")
    negative = sum(int((np.linalg.eigvalsh(M) < 0).sum()) for M, *_ in layers)
    print(f"{'negative eigenvalues, by pivots and exact':<48}{negative} {F.inertia.negative}")


def draw(H, lifted, layers, picture):
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 13.8), layout="constrained")
    colours = ListedColormap(["white", *KINDS.values()])
    sizes = {"cmap": colours, "vmin": -0.5, "vmax": len(KINDS) + 0.5, "interpolation": "nearest"}
    P, a = H.shape[0], SAMPLES * WIDTH
    groups = lifted.groups()
    order = np.concatenate(groups)

    ax = axes[0, 0]
    ax.imshow(np.where(H.todense() != 0.0, NUMBER["an entry of H"], 0), **sizes)
    ax.set_title(f"H: {P} parameters of {H.num_layers} layers\ndense, as every parameter acts on all behind it")
    lines(ax, [where.stop for where in lifted.x])

    ax = axes[0, 1]
    ax.imshow(lifted.kind, **sizes)
    ax.set_title(
        f"The lifted system: parameters, states, multipliers\n{len(order)} unknowns, "
        f"{(lifted.kind > 0).mean():.0%} of the entries"
    )
    lines(ax, [lifted.x[-1].stop, lifted.z[-1].stop])
    ax.set_yticks(
        [0.5 * (part[0].start + part[-1].stop) for part in (lifted.x, lifted.z, lifted.q)],
        ["parameters", "states", "multipliers"],
        rotation=90,
        va="center",
    )

    ax = axes[1, 0]
    ax.imshow(lifted.kind[np.ix_(order, order)], **sizes)
    ends = np.cumsum([len(group) for group in groups])
    for start, stop in zip(np.concatenate([[0], ends]), ends):
        ax.add_patch(
            Rectangle((start - 0.5, start - 0.5), stop - start, stop - start, fill=False, color="black", lw=1.2)
        )
    ax.set_title(
        f"The same, permuted layer by layer: block tridiagonal\nblocks of up to {max(map(len, groups))} rows, p + 2 a"
    )
    ax.set_yticks(
        ends - 0.5 * np.array([len(group) for group in groups]),
        [*(f"layer {l + 1}" for l in range(H.num_layers)), "output"],
        rotation=90,
        va="center",
        fontsize=7,
    )

    # To the scale of the picture beside it, along a diagonal.
    ax, corner = axes[1, 1], 0
    canvas = np.zeros((len(order),) * 2, int)
    for number, (M, K, front) in zip(range(H.num_layers, 0, -1), layers):
        m, N = K.shape
        for at, block, kind in (((0, 0), M, "M"), ((0, m), K, "K"), ((m, 0), K.T, "K"), ((m, m), front, "P")):
            rows, columns = corner + at[0], corner + at[1]
            entries = np.abs(block) > 1e-13 * np.abs(M).max()
            canvas[rows : rows + len(block), columns : columns + block.shape[1]] = np.where(entries, NUMBER[kind], 0)
        ax.add_patch(Rectangle((corner - 0.5,) * 2, m + N, m + N, fill=False, color="black", lw=1.2))
        ax.text(
            corner + m + N + 1.5, corner + 0.5 * (m + N), f"layer {number}: {m} + {N} rows", va="center", fontsize=9
        )
        corner += m + N + 1
    ax.imshow(canvas, **sizes)
    ax.set_title(
        "What is eliminated here: fronts, last layer first, to the same scale\n"
        f"{SAMPLES} samples see {SAMPLES} directions of each neuron's weights: M has {a} rows at most",
        fontsize=11,
    )
    for ax in axes.flat:
        ax.set_xticks([])
        if ax in (axes[0, 0], axes[1, 1]):
            ax.set_yticks([])
    legend = [Patch(color=colour, label=name) for name, colour in KINDS.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def lines(ax, ends):
    """Between blocks."""
    for end in ends[:-1] if len(ends) > 2 else ends:
        ax.axhline(end - 0.5, color="black", lw=0.6)
        ax.axvline(end - 0.5, color="black", lw=0.6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    net, params, X, H = problem()
    lifted, layers = Lifted(H), fronts(net, params, X, H)
    check(H, lifted, layers)
    draw(H, lifted, layers, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/sparsity.png"
