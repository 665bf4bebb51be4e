"""Draws is_this_for_me.svg: which method for how many parameters and samples, from the formulas of docs/cost.md.

Run it from anywhere: ``python docs/draw_chart.py``. Nothing but the standard library is needed.
"""

from pathlib import Path

WIDTH = 16  # units of the layers
BYTES, FLOPS = 64e9, 1.8e14  # what a job may take: memory, and an hour at 50 Gflop/s
P_RANGE, Q_RANGE = (2, 8), (1, 7)  # decades of the parameters, and of samples times width
LEFT, TOP, SCALE_X, SCALE_Y = 80, 30, 90, 65
COLOURS = {"layers": "#9ecae1", "dense": "#fdd0a2", "neither": "#eeeeee"}


def layers(P, B, n=WIDTH):
    """(flops, bytes) of factorizing by layers."""
    if B <= n:
        return P / n**2 * 7 / 3 * (B * n) ** 3, P / n**2 * 12 * (B * n) ** 2
    return P / n**2 * (n**6 / 3 + B * n**5 + B**2 * n**4), P / n**2 * (4 * n**4 + 8 * B * n**3)


def dense(P, B):
    """(flops, bytes) of forming H and factorizing it."""
    return 2 * B * P**2 + P**3 / 3, 12 * P**2


def choice(P, q):
    options = {"layers": layers(P, q / WIDTH), "dense": dense(P, q / WIDTH)}
    fitting = {name: flops for name, (flops, held) in options.items() if flops <= FLOPS and held <= BYTES}
    return min(fitting, key=fitting.get) if fitting else "neither"


def x(log_p):
    return LEFT + (log_p - P_RANGE[0]) * SCALE_X


def y(log_q):
    return TOP + (Q_RANGE[1] - log_q) * SCALE_Y


def text(at_x, at_y, words, size=14, anchor="middle", more=""):
    return f'<text x="{at_x:.0f}" y="{at_y:.0f}" font-size="{size}" text-anchor="{anchor}" {more}>{words}</text>'


def drawing():
    right, bottom = x(P_RANGE[1]), y(Q_RANGE[0])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 30} {bottom + 70}" font-family="sans-serif">',
        f'<rect width="{right + 30}" height="{bottom + 70}" fill="white"/>',
    ]
    step = 0.02
    for i in range(round((P_RANGE[1] - P_RANGE[0]) / step)):
        log_p, start = P_RANGE[0] + i * step, Q_RANGE[0]
        steps = round((Q_RANGE[1] - Q_RANGE[0]) / step)
        kinds = [choice(10 ** (log_p + step / 2), 10 ** (Q_RANGE[0] + (j + 0.5) * step)) for j in range(steps)]
        for j in range(steps):
            if j + 1 == steps or kinds[j + 1] != kinds[j]:
                end = Q_RANGE[0] + (j + 1) * step
                lines.append(
                    f'<rect x="{x(log_p):.1f}" y="{y(end):.1f}" width="{SCALE_X * step + 0.3:.1f}" '
                    f'height="{(end - start) * SCALE_Y + 0.3:.1f}" fill="{COLOURS[kinds[j]]}"/>'
                )
                start = end
    for decade in range(P_RANGE[0], P_RANGE[1] + 1):
        lines.append(f'<path d="M{x(decade)} {bottom}v6" stroke="black"/>')
        lines.append(text(x(decade), bottom + 22, f"{10**decade:,}", 12))
    for decade in range(Q_RANGE[0], Q_RANGE[1] + 1):
        lines.append(f'<path d="M{LEFT} {y(decade)}h-6" stroke="black"/>')
        lines.append(text(LEFT - 10, y(decade) + 4, f"{10**decade:,}", 12, "end"))
    lines += [
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="black"/>',
        text((LEFT + right) / 2, bottom + 48, "parameters"),
        text(LEFT, TOP - 10, "samples x width", 14, "middle"),
        text(x(3.2), y(5.3), "dense", 18),
        text(x(3.2), y(4.95), "data sets; method=&quot;dense&quot;"),
        text(x(5.2), y(2.2), "layer by layer", 18),
        text(x(5.2), y(1.85), "deep, narrow nets and minibatches; method=&quot;layers&quot;"),
        text(x(6.5), y(5.5), "neither within 64 GB and an hour", 18),
        text(x(6.5), y(5.15), "last layers alone, K-FAC, or CG, MINRES"),
        text(x(6.5), y(4.85), "and Lanczos on products with H"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("is_this_for_me.svg").write_text(drawing(), encoding="utf-8")
