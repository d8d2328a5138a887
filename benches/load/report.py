"""Tables, quantiles, and a plot in SVG without any library."""

import json
import math
import sys
from pathlib import Path

MEGABYTE = 1e6
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f", "#bcbd22")


def say(line: str = "") -> None:
    print(line, flush=True)


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def latencies(values: list[float]) -> dict:
    return dict(jobs=len(values), **{name: quantile(values, share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))})


def median(values: list[float]) -> float:
    return quantile(values, 0.5)


def seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 10 else f"{value:.1f} s"


def table(rows: list[list[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths))))


def save(path: Path, results: dict) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


def steps(most: float) -> float:
    """A round distance between some five grid lines."""
    raw = most / 5 or 1
    power = 10 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)


def plot(path: Path, title: str, panels: list[tuple[str, dict[str, list[tuple[float, float]]]]]) -> None:
    """One panel below the other, each a title and lines by name; x is seconds."""
    left, width, height, gap = 70, 760, 150, 46
    most_x = max((x for _, lines in panels for line in lines.values() for x, _ in line), default=1) or 1
    unit, scale = ("minutes", 60) if most_x > 600 else ("seconds", 1)
    out = [f'<text x="{left}" y="22" font-size="15">{title}</text>']
    for at, (name, lines) in enumerate(panels):
        top = 54 + at * (height + gap)
        most_y = max((y for line in lines.values() for _, y in line if y == y), default=1) or 1
        step = steps(most_y)
        most_y = math.ceil(most_y / step) * step
        out.append(f'<text x="{left}" y="{top - 8}" font-weight="bold">{name}</text>')
        for index in range(round(most_y / step) + 1):
            y = top + height - height * index * step / most_y
            out.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/><text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{index * step:g}</text>')
        step = steps(most_x / scale)
        for index in range(int(most_x / scale / step) + 1):
            x = left + width * index * step * scale / most_x
            out.append(f'<text x="{x:.1f}" y="{top + height + 14}" text-anchor="middle">{index * step:g}</text>')
        for (label, line), colour, place in zip(lines.items(), COLOURS * 2, range(len(lines))):
            points = " ".join(f"{left + width * x / most_x:.1f},{top + height - height * y / most_y:.1f}" for x, y in line if y == y)
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
            out.append(f'<text x="{left + width + 8}" y="{top + 12 + 15 * place}" fill="{colour}">{label}</text>')
    bottom = 54 + len(panels) * (height + gap)
    out.append(f'<text x="{left + width / 2}" y="{bottom - 8}" text-anchor="middle">{unit}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 130}" height="{bottom}" font-family="sans-serif" font-size="11">'
    path.write_text("\n".join([head, f'<rect width="100%" height="100%" fill="white"/>', *out, "</svg>", ""]))
