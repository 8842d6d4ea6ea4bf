"""The picture to choose a network by: accuracy against latency, and against the file's size."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_resnet.export.benchmarking import Benchmark, Measurement
from keras_resnet.files import atomic_file

# Distinguishable by the color-blind; Paul Tol's "bright" scheme.
_COLORS = {
    "float32": "#4477aa",
    "float16": "#66ccee",
    "dynamic_int8": "#ccbb44",
    "int8": "#ee6677",
    "int16x8": "#aa3377",
}
_OTHER_COLOR = "#777777"
_MARKERS = "osD^vP<X>*hdp8H"
_POINT = 8.0  # width of a marker, in points of 1/72 inch
# Where a label's middle may lie as seen from its marker, best first; steps beside the marker.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (3, 9, 18, 30, 45, 62, 80)
_NEAR = 2  # of these, the nearest ones
_FAR = 9  # from this distance on a line tells what a label belongs to
_LEADER = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
_LABEL: dict[str, Any] = {"fontsize": 8, "parse_math": False}  # a name may hold dollar signs

Pair = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top
Cost = Callable[[Measurement], float]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one dominates: is as cheap and as good, and better in one of both.

    Args:
        points: (cost, gain) each.

    Returns:
        Their numbers by rising cost; of points that are equal, all.
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        best = points[found[-1]] if found else None
        if best is None or points[index][1] > best[1] or points[index] == best:
            found.append(index)
    return found


def draw(benchmark: Benchmark, path: str | os.PathLike[str]) -> None:
    """Draws accuracy against the 90th percentile of the latency, and against the file's size.

    The line joins what nothing else beats in both. What has no measured accuracy, like a network
    that was never trained, is drawn below, by its latency and size alone.

    Args:
        benchmark: measurements of several bundles; they are comparable where they were exported
            with the same evaluation images.
        path: of the picture, `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: for a suffix that matplotlib does not know.
    """
    from matplotlib.figure import Figure

    known = [m for m in benchmark.measurements if m.accuracy is not None]
    unknown = [m for m in benchmark.measurements if m.accuracy is None]
    heights = [4.5] * bool(known) + [0.5 + 0.22 * len(unknown)] * bool(unknown)
    figure = Figure(figsize=(12, 1.5 + sum(heights)), layout="constrained")
    rows = figure.subplots(len(heights), 2, squeeze=False, sharex="col", height_ratios=heights)
    look = _Look(benchmark.measurements)
    files = list({m.name: m for m in known}.values())  # the same with every number of threads
    panels: list[tuple[str, Cost, list[Measurement], list[str]]] = [
        ("latency, 90th percentile (ms)", _latency, known, [look.label(m) for m in known]),
        ("file (MB)", _megabytes, files, [m.name for m in files]),
    ]
    for column, (axis, cost, shown, _) in zip(rows.T, panels, strict=True):
        if known:
            _draw_front(column[0], shown, cost, look)
        if unknown:
            _draw_strip(column[-1], unknown, cost, look)
        _scale(column[-1], axis)
    if unknown:
        rows[-1, 1].tick_params(labelleft=False)
        rows[-1, 0].set_title("without a measured accuracy", loc="left", fontsize=9)
    machine = benchmark.machine
    figure.suptitle(f"{machine.cpu}, LiteRT {machine.litert}", fontsize=9, parse_math=False)
    legend = figure.legend(
        handles=look.legend(bool(known)), loc="outside lower center", ncols=7, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    if known:
        figure.draw_without_rendering()  # from now on everything has its place
        for axes, (_, cost, shown, labels) in zip(rows[0], panels, strict=True):
            _write_labels(axes, _points(shown, cost), labels)
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120)


class _Look:
    """Colors by scheme, markers by network, labels by name."""

    def __init__(self, measurements: Sequence[Measurement]):
        networks = dict.fromkeys(m.network or m.name for m in measurements)
        self._markers = {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(networks)}
        self._schemes = dict.fromkeys(m.scheme for m in measurements)
        self._with_threads = len({m.threads for m in measurements}) > 1

    def label(self, m: Measurement) -> str:
        threads = "1 thread" if m.threads == 1 else f"{m.threads} threads"
        return f"{m.name}, {threads}" if self._with_threads else m.name

    def of(self, m: Measurement) -> dict[str, Any]:
        """How a point is drawn."""
        marker, color = self._markers[m.network or m.name], _COLORS.get(m.scheme, _OTHER_COLOR)
        return {"marker": marker, "color": color, "markersize": _POINT, "linestyle": "none"}

    def legend(self, with_front: bool) -> list[Any]:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        front_ = [Line2D([], [], color="black", linewidth=1, label="Pareto front")]
        schemes = [
            Patch(color=_COLORS.get(name, _OTHER_COLOR), label=name) for name in self._schemes
        ]
        networks = [
            Line2D([], [], color="#444444", marker=marker, linestyle="none", label=name)
            for name, marker in self._markers.items()
        ]
        return [*(front_ if with_front else []), *schemes, *networks]


def _latency(m: Measurement) -> float:
    return m.percentile(90)


def _megabytes(m: Measurement) -> float:
    return m.file_bytes / 1e6


def _points(known: Sequence[Measurement], cost: Cost) -> list[Pair]:
    return [(cost(m), m.accuracy) for m in known if m.accuracy is not None]


def _draw_front(axes: Any, known: Sequence[Measurement], cost: Cost, look: _Look) -> None:
    from matplotlib.ticker import PercentFormatter

    points = _points(known, cost)
    best = [points[i] for i in front(points)]
    axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color="black", linewidth=1)
    for m, (x, y) in zip(known, points, strict=True):
        axes.plot(x, y, **look.of(m))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.tick_params(labelbottom=True)


def _draw_strip(axes: Any, unknown: Sequence[Measurement], cost: Cost, look: _Look) -> None:
    """A row for each, the quickest one on top."""
    rows = sorted(unknown, key=_latency, reverse=True)
    for number, m in enumerate(rows):
        axes.plot(cost(m), number, **look.of(m))
    names = [look.label(m) for m in rows]
    axes.set_yticks(range(len(rows)), names, **_LABEL)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)


def _scale(axes: Any, label: str) -> None:
    """A logarithmic axis whose ticks are plain numbers, several in a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write_labels(axes: Any, points: Sequence[Pair], labels: Sequence[str]) -> None:
    """Writes labels beside the points so that they cover neither these, the front nor each other.

    Those of the front come first, wherever there is room, with a line that says whose it is. The
    others are left out if there is no room beside the point: its color and marker tell as well.
    """
    scale = axes.figure.dpi / 72  # pixels in a point
    side = scale * _POINT
    middles = [tuple(axes.transData.transform(point)) for point in points]
    best = front(points)
    taken = [_box(middle, (side, side)) for middle in middles]
    taken += _steps([middles[i] for i in best])
    frame = axes.get_window_extent()
    for number in (*best, *(i for i in range(len(points)) if i not in best)):
        distances = _DISTANCES if number in best else _DISTANCES[:_NEAR]
        size = _extent(axes, labels[number])
        for distance, (dx, dy) in itertools.product(distances, _DIRECTIONS):
            room = side / 2 + scale * distance
            away = (dx * (room + size[0] / 2), dy * (room + size[1] / 2))
            box = _box((middles[number][0] + away[0], middles[number][1] + away[1]), size)
            if _is_free(box, taken, frame):
                taken.append(box)
                _write(axes, points[number], labels[number], away, scale, distance)
                break


def _write(axes: Any, point: Pair, label: str, away: Pair, scale: float, distance: float) -> None:
    axes.annotate(
        label,
        point,
        (away[0] / scale, away[1] / scale),
        textcoords="offset points",
        ha="center",
        va="center",
        arrowprops=_LEADER if distance >= _FAR else None,
        **_LABEL,
    ).set_in_layout(False)


def _steps(corners: Sequence[Pair]) -> list[Box]:
    """What the line of the front covers: from each point to the right, then up to the next one."""
    boxes = []
    for (x, y), (next_x, next_y) in itertools.pairwise(corners):
        boxes += [(x, y - 1, next_x, y + 1), (next_x - 1, y, next_x + 1, next_y)]
    return boxes


def _extent(axes: Any, label: str) -> Pair:
    """Width and height of a label in pixels."""
    probe = axes.text(0, 0, label, **_LABEL)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height


def _box(middle: Pair, size: Pair) -> Box:
    (x, y), (width, height) = middle, size
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _is_free(box: Box, taken: Sequence[Box], frame: Any) -> bool:
    left, bottom, right, top = box
    if left < frame.x0 or right > frame.x1 or bottom < frame.y0 or top > frame.y1:
        return False
    return not any(
        left < other[2] and other[0] < right and bottom < other[3] and other[1] < top
        for other in taken
    )
