"""Draws architecture.svg: the packages of numba_hinv in the order of their imports, read from the imports themselves.

Run it from anywhere: ``python docs/draw_architecture.py``. Each box says what lives there, each arc that the upper one
imports from the lower one. Nothing but the standard library is needed.
"""

import ast
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "numba_hinv"
# From the top, a rank a row: (name, what lives there).
ROWS = [
    [("frameworks", "nets of PyTorch, JAX and scikit-learn; estimators")],
    [
        ("applications", "training, spectra, influence, Laplace"),
        ("storage", "files, checked"),
        ("embedded", "sweeps for @njit"),
        ("distributed", "segments on a cluster"),
    ],
    [("network", "Network: layers, a loss"), ("losses", "losses with options")],
    [("hessian", "Hessian: a LinearOperator")],
    [("factorization", "Factorization: its inverse")],
    [("certainty", "refinement, rescue, singularity, inertia, determinants: what may be promised")],
    [("factors", "ways of factoring behind one interface: layers, segments, dense")],
    [("cuda", "twins of the kernels, and the processor that launches them")],
    [("system", "blocks, products, norm and scaling of H on a processor")],
    [("layers", "layers, activations, losses: nets become derivative blocks")],
    [("runtime", "threads, memory, progress, columns, validation, files, the cache")],
    [("kernels", "compiled sweeps: plumbing, dense, steps, sweeps")],
]
WIDTH, HEIGHT, GAP, LEFT, ARCS = 640, 46, 14, 20, 190


def imported():
    """{(package, package that it imports from)}, without those within a package."""
    names = {name for row in ROWS for name, _ in row}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in names:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = parts[: len(parts) - node.level] + tuple((node.module or "").split("."))
            base = tuple(filter(None, base))
            targets = [base[0]] if base else [alias.name for alias in node.names]
            found |= {(parts[0], target) for target in targets if target in names and target != parts[0]}
    return found


def box(x, y, width, name, text):
    """A package."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" fill="#eef3f8" stroke="#41668c"/>'
        f'<text x="{x + 10}" y="{y + 19}" font-weight="bold">{name}</text>'
        f'<text x="{x + 10}" y="{y + 36}" font-size="11">{escape(text)}</text>'
    )


def draw():
    """The picture as SVG."""
    shapes, place = [], {}
    for rank, row in enumerate(ROWS):
        y, width = 10 + rank * (HEIGHT + GAP), (WIDTH - GAP * (len(row) - 1)) / len(row)
        for at, (name, text) in enumerate(row):
            place[name] = rank, y + HEIGHT / 2
            if len(row) > 1:
                text = text if len(text) < 24 else text[: text.rindex(",", 0, 26)]
            shapes.append(box(LEFT + at * (width + GAP), y, width, name, text))
    arcs = sorted({(place[one], place[other]) for one, other in imported() if place[one][0] < place[other][0]})
    for (above, start), (below, end) in arcs:
        reach = LEFT + WIDTH + 12 + ARCS * (below - above) / len(ROWS)
        shapes.append(
            f'<path d="M {LEFT + WIDTH} {start} C {reach} {start} {reach} {end} {LEFT + WIDTH + 3} {end}" fill="none" '
            'stroke="#8a9bb0" stroke-width="1" marker-end="url(#head)"/>'
        )
    height = 20 + len(ROWS) * (HEIGHT + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + ARCS}" height="{height}" '
        'font-family="sans-serif" font-size="13"><defs><marker id="head" markerWidth="7" markerHeight="7" refX="6" '
        'refY="3" orient="auto"><path d="M0,0 L6,3 L0,6 z" fill="#8a9bb0"/></marker></defs>'
        '<rect width="100%" height="100%" fill="white"/>' + "\n".join(shapes) + "</svg>\n"
    )


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.svg").write_text(draw())
