"""Draws the marks on the validation split over the items seen, as curves.svg.

    python curves.py small/curve.jsonl large/curve.jsonl
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 300, 44, 36, 24
COLOURS = {"small": "#c2571a", "large": "#1a5fb4"}


def main() -> None:
    curves = {Path(p).parent.name: [json.loads(line) for line in open(p)] for p in sys.argv[1:]}
    most = max(c[-1]["items"] for c in curves.values())

    def point(items: float, mark: float) -> str:
        return f"{LEFT + items / most * (WIDTH - LEFT - 10):.1f},{HEIGHT - BOTTOM - mark / 100 * (HEIGHT - BOTTOM - TOP):.1f}"

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for mark in range(0, 101, 25):
        x, y = point(0, mark).split(",")
        out.append(f'<path d="M{x},{y} H{WIDTH - 10}" stroke="#ddd"/><text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{mark}</text>')
    for n, (name, curve) in enumerate(curves.items()):
        for m, (row, dash) in enumerate((("easy", ""), ("hard", "5 4"))):
            line = " ".join(point(c["items"], c[row]) for c in curve)
            out.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2" stroke-dasharray="{dash}"/>')
            out.append(f'<text x="{LEFT + 10 + (2 * n + m) * 130}" y="16" fill="{COLOURS[name]}">{name}, {row} {"- -" if dash else "—"}</text>')
    out.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 10}" text-anchor="end">training items, 0 to {most:,}; marks in % of 50 validation items a family</text></svg>')
    Path(__file__).with_name("curves.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
