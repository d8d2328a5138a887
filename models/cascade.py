"""Draws quality against cost, from what `promptyard bench cascade --json` printed, as cascade.svg.

    python cascade.py uniform.json mix.json    # one panel for each file
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 440, 320, 44, 40, 44
CURVES = {"before": ("#1a5fb4", "before generation only"), "after": ("#c2571a", "escalation only"), "both": ("#26734d", "both")}


def panel(name: str, found: dict, left: float) -> list[str]:
    points = [p for curve in found["curves"].values() for p in curve["points"]]
    most = max(1.0, max(p["cost"] for p in points))
    low = 10 * int(10 * min(p["accuracy"] for p in points))

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        x = left + LEFT + cost / most * (WIDTH - LEFT - 14)
        return x, HEIGHT - BOTTOM - (100 * accuracy - low) / (100 - low) * (HEIGHT - BOTTOM - TOP)

    out = [f'<text x="{left + LEFT}" y="16" font-weight="bold">{name}</text>']
    for mark in range(low, 101, 10):
        x, y = place(0, mark / 100)
        out.append(f'<path d="M{x:.1f},{y:.1f} H{left + WIDTH - 14}" stroke="#ddd"/><text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{mark}</text>')
    for share in range(0, int(100 * most) + 1, 25):
        x, _ = place(share / 100, 0)
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{share}</text>')
    for curve, (colour, _) in CURVES.items():
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(p["cost"], p["accuracy"]) for p in found["curves"][curve]["points"]))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if found["oracle"]:
        x, y = place(found["oracle"]["cost"], found["oracle"]["accuracy"])
        out.append(f'<path d="M{x:.1f},{TOP} V{HEIGHT - BOTTOM}" stroke="#777" stroke-dasharray="4 3"/>')
        out.append(f'<path d="M{x - 4:.1f},{y - 4:.1f} l8,8 m0,-8 l-8,8" stroke="#777" stroke-width="2"/>')
        out.append(f'<text x="{x + 5:.1f}" y="{HEIGHT - BOTTOM - 6}" fill="#777">oracle</text>')
    for end, label in (("always_small", "always small"), ("always_large", "always large"), ("configured", "as configured")):
        x, y = place(found[end]["cost"], found[end]["accuracy"])
        anchor = "start" if end == "always_small" else "end"
        below = 16 if end != "always_large" else -8
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><text x="{x:.1f}" y="{y + below:.1f}" text-anchor="{anchor}">{label}</text>')
    return out


def main() -> None:
    files = [Path(p) for p in sys.argv[1:]]
    width = WIDTH * len(files)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{HEIGHT}" fill="white"/>']
    for n, path in enumerate(files):
        out += panel(path.stem, json.loads(path.read_text()), n * WIDTH)
    for n, (colour, words) in enumerate(CURVES.values()):
        out.append(f'<text x="{LEFT + n * 150}" y="32" fill="{colour}">— {words}</text>')
    out.append(f'<text x="{width - 14}" y="{HEIGHT - 8}" text-anchor="end">compute per job in % of always large (parameters × tokens); right answers in %</text></svg>')
    Path(__file__).with_name("cascade.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
