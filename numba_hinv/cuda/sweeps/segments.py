"""Where the eliminations of a chain's segments start, and the seams that they leave (`factors.segmentation`)."""

from ..plumbing.target import LANES, cuda, kernel, start_team


@kernel
def start_segments(segments, alpha, guess, places, front, carried):
    """P <- Pi = guess alpha I, Phi <- alpha I, Psi <- 0 at the end of segment ``blockIdx.y`` for damping
    ``blockIdx.x``.
    """
    team = start_team()
    row = cuda.blockIdx.x * cuda.gridDim.y + cuda.blockIdx.y
    segment = segments[cuda.blockIdx.y]
    c, scale, zero = segment.c, alpha[cuda.blockIdx.y], alpha.dtype.type(0)
    P_at, Phi_at = (segment.end % 2) * (front.shape[1] // 2), (segment.end % 2) * places.phi_size
    for i in range(team.group, c, team.groups):
        for j in range(team.lane, c, LANES):
            here = scale if i == j else zero
            front[row, P_at + i * c + j] = guess * here
            carried[row, Phi_at + i * c + j] = here
            carried[row, 2 * places.phi_size + i * c + j] = zero


@kernel
def form_seams(table, segments, seams, alpha, guess, places, front, carried, lin, seam_front):
    """The blocks of the seam behind segment ``blockIdx.y``, for damping ``blockIdx.x``, whose layers lie together.

    From the last segment comes the front that the chain of seams starts with.
    """
    team = start_team()
    t, s, last = cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y - 1
    row, segment = t * cuda.gridDim.y + s, segments[s]
    c, N, scale = segment.c, table[segment.first].N, alpha[s]
    zero, one = alpha.dtype.type(0), alpha.dtype.type(1)
    P_at, Phi_at = (segment.first % 2) * (front.shape[1] // 2), (segment.first % 2) * places.phi_size
    if s == last:
        to = ((t + 1) * last % 2) * (seam_front.shape[1] // 2)
        for x in range(team.rank, N * N, team.size):
            seam_front[t, to + x] = front[row, P_at + x]
        return
    seam = seams[t * last + s]
    for i in range(team.group, 2 * c, team.groups):
        for j in range(team.lane, 2 * c, LANES):
            here = scale if i % c == j % c else zero
            if i < c and j < c:
                value = -guess * here
            elif i < c or j < c:
                value = -here
            else:
                value = -carried[row, 2 * places.phi_size + (i - c) * c + j - c]
            lin.Dxx[seam.Dxx + 2 * i * c + j] = value
        for j in range(team.lane, N, LANES):
            value = zero if i < c else carried[row, Phi_at + (i - c) * N + j]
            lin.Dzx[seam.Dzx + i * N + j] = value
    for i in range(team.group, c, team.groups):
        for j in range(team.lane, 2 * c, LANES):
            lin.Dx[seam.Dx + 2 * i * c + j] = one if i == j else zero
        for j in range(team.lane, N, LANES):
            lin.Dz[seam.Dz + i * N + j] = zero
    for x in range(team.rank, N * N, team.size):
        lin.Dzz[seam.Dzz + x] = front[row, P_at + x]
