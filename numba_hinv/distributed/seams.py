"""The seams between segments: a short chain, given as blocks, that any one machine factorizes and solves.

What moves between machines is here alone, and its size is that of the states at the seams.
"""

import numpy as np

from ..factors import segmentation
from ..hessian import Hessian
from ..layers.blocks import LayerBlocks


class Seams:
    """The chain of the seams (docs/theory.md, (10.4)) and its factorization, from the `Relation` of every segment."""

    def __init__(self, relations):
        self.sizes = [(relation.P.shape[0], relation.Psi.shape[0]) for relation in relations]
        self.factorization = None
        self.num_negative, self.logabsdet, self.is_exact = 0, 0.0, True
        if len(relations) == 1:
            return
        guess, blocks = float(np.ldexp(1.0, segmentation.GUESS)), []
        for P, Phi, Psi, alpha, _ in relations[:-1]:
            c, N = Phi.shape
            eye, none = alpha * np.eye(c), np.zeros((c, N))
            Dxx = np.block([[-guess * eye, -eye], [-eye, -0.5 * (Psi + Psi.T)]])
            blocks.append(LayerBlocks(np.eye(c, 2 * c), none, Dxx, np.vstack([none, Phi]), P))
        chain = Hessian.from_blocks(blocks, relations[-1].P)
        self.factorization = chain.factorize(0.0, factor_dtype=np.float64)
        inertia, (_, logabsdet) = self.factorization.inertia, self.factorization.slogdet()
        states = [c for _, c in self.sizes[:-1]]
        self.num_negative = inertia.negative - sum(states)
        self.is_exact = inertia.exact
        scales = sum(c * np.log(relation.alpha) for c, relation in zip(states, relations))
        self.logabsdet = float(logabsdet) - 2.0 * scales

    def __sizeof__(self):
        return 0 if self.factorization is None else self.factorization.hessian.shape[0] * 64

    def summary(self):
        """(negative eigenvalues but for those of the multipliers, log|det|, whether the first is certain)."""
        return self.num_negative, self.logabsdet, self.is_exact

    def solve(self, rights):
        """What every segment is to know of its seams, (k, N + c) each, from what their first halves have told."""
        if self.factorization is None:
            return [np.zeros_like(right) for right in rights]
        parts = []
        for right, (N, _), following in zip(rights, self.sizes, rights[1:]):
            c = right.shape[1] - N
            parts += [following[:, :c], right[:, N:]]
        found = self.factorization.solve(np.concatenate(parts, axis=1).T).T
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        found = np.split(found, ends, axis=1)
        states, multipliers = found[::2], found[1::2]
        none = np.zeros((rights[0].shape[0], 0))
        return [np.hstack(pair) for pair in zip([none, *states], [*multipliers, none])]


def connect(links, ends):
    """(states that come in, adjoints of those that go out) of every segment, from its `Links` and `Ends`."""
    k = ends[0].states.shape[0]
    states = [np.zeros((k, 0))]
    for (J, _), end in zip(links[:-1], ends[:-1]):
        states.append(end.states + states[-1] @ J.T)
    adjoints = [np.zeros((k, 0))]
    for (J, C), end, z in reversed(list(zip(links[1:], ends[1:], states[1:]))):
        adjoints.append(end.adjoints + adjoints[-1] @ J + z @ C)
    return list(zip(states, adjoints[::-1]))
