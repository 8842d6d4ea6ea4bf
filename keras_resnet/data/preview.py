"""A picture of what a network sees while it is trained."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.data.augment import Augmentation
from keras_resnet.data.pipeline import batches
from keras_resnet.data.sources import ImageData
from keras_resnet.data.splits import Shape, Split
from keras_resnet.files import atomic_file, refuse_existing
from keras_resnet.preprocessing import Preprocessing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
# Small images are enlarged to about this many pixels, each pixel to a square.
_CELL = 128


def preview(
    data: ImageData,
    augmentation: Augmentation,
    out: str | os.PathLike[str],
    *,
    shape: Shape = (32, 32, 3),
    preprocessing: Preprocessing | None = None,
    recipe: str = "",
    rows: int = 6,
    columns: int = 7,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """Draws training images as evaluation sees them, each beside what training makes of it.

    The images come out of the pipeline that feeds the network, with its own random numbers; only
    the preprocessing is undone. Where labels are mixed, each image has its own below it.

    Args:
        data: the images are random ones of its training split.
        augmentation: what is done to them.
        out: the picture to write, a PNG.
        shape: `(height, width, channels)` of the network's input.
        preprocessing: the network's; None for the default.
        recipe: the name of the recipe that the augmentation belongs to, for the title.
        rows: how many images, at most as many as there are.
        columns: how many times each of them is augmented.
        seed: of the choice and of the augmentation.
        force: replace the picture if there is one.

    Returns:
        The path of the picture.

    Raises:
        FileExistsError: if `out` exists and `force` is off.
        ValueError: if `out` is not named as a PNG, or `rows` or `columns` is no positive number.
        DataError: if an image cannot be read.
    """
    path = Path(out)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Argument `out` must be a file name ending in .png. Received: {path}")
    for name, value in {"rows": rows, "columns": columns}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"Argument `{name}` must be a positive integer. Received: {value!r}")
    refuse_existing(path, force)
    rows = min(rows, data.train.examples)
    copies, labels = data.train.copies(rows, columns, seed)
    views = _views(
        copies, max(2, rows), shape, preprocessing or Preprocessing(), augmentation, seed
    )
    title = f"{_shortened(data.name, 60)}, {' × '.join(map(str, shape))}"
    if recipe:
        title += f", recipe {recipe}"
    names = [data.class_names[label] for label in labels]
    figure = _draw(*views, names, columns, [title, describe(augmentation)])
    with atomic_file(path, force=force) as temporary:
        figure.savefig(temporary, dpi=_DPI)
    return path


def describe(augmentation: Augmentation) -> str:
    """An augmentation in a line, e.g. `"pad-crop, flip, mixup 0.2"`."""
    parts = []
    for step in augmentation.steps:
        if step == "random-resized-crop":
            low, high = augmentation.crop_area
            parts.append(f"{step} {100 * low:g} to {100 * high:g} % of the area")
        elif step == "randaugment":
            count, magnitude = augmentation.randaugment
            parts.append(f"{step} {count} × {magnitude}")
        else:
            parts.append(step)
    if augmentation.erase:
        parts.append(f"erase {100 * augmentation.erase:g} % of the images")
    parts += [f"{n} {v:g}" for n in ("mixup", "cutmix") if (v := getattr(augmentation, n))]
    return ", ".join(parts) or "no augmentation"


def _views(
    copies: Split,
    batch_size: int,
    shape: Shape,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each copy as evaluation sees it, as training does, and the shares of the copies in that.

    Pixels 0..255 `(copies, h, w, c)`, twice, and targets `(copies, copies)`.
    """

    def read(augment: Augmentation) -> tuple[np.ndarray, np.ndarray]:
        data = batches(
            copies,
            batch_size,
            shape,
            preprocessing,
            augment=augment,
            shuffle=(seed, 0),
            classes=copies.examples,
        )
        with copies.own_errors():
            images, labels = zip(*data.as_numpy_iterator(), strict=True)
        return _pixels(np.concatenate(images), preprocessing), np.concatenate(labels)

    # The order of an epoch does not depend on the augmentation.
    plain, numbers = read(Augmentation())
    seen, targets = read(augmentation)
    if not augmentation.mixes:
        targets = np.eye(copies.examples)[numbers]
    # Of two mixed images, the larger share says which one it is: in a batch all have the same.
    own = targets[np.arange(len(numbers)), numbers] >= 0.5
    shown = np.where(own, numbers, targets.argmax(axis=1))
    return plain[np.argsort(numbers)], seen[np.argsort(shown)], targets[np.argsort(shown)]


def _pixels(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """What a network takes, as uint8 pixels in RGB or grey."""
    pixels = values * np.array(preprocessing.std) + np.array(preprocessing.mean)
    if preprocessing.channels == "bgr":
        pixels = pixels[..., ::-1]
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _draw(
    plain: np.ndarray,
    seen: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    columns: int,
    title: Sequence[str],
) -> Figure:
    from matplotlib.figure import Figure

    rows, (height, width) = len(seen) // columns, seen.shape[1:3]
    scale = max(1, round(_CELL / max(height, width)))
    is_mixed = bool((np.count_nonzero(targets, axis=1) > 1).any())
    # In inches: cells, the space between them (with two lines of text where there are shares), and
    # margins on the left for the names of the classes and on top for the title.
    cell = np.array([width, height]) * scale / _DPI
    gap = np.array([0.08, 0.36 if is_mixed else 0.08])
    names = [_shortened(name, 16) for name in names]
    left = 0.2 + 0.1 * max(map(len, names))
    total = left + (cell[0] + gap[0]) * (columns + 1) + 0.08
    wrap = textwrap.TextWrapper(max(20, int(11 * total)), break_on_hyphens=False)
    lines = [part for line in title for part in wrap.wrap(line)]
    margin = np.array([left, 0.4 + 0.17 * len(lines)])
    size = margin + (cell + gap) * [columns + 1, rows] + 0.08
    figure = Figure(figsize=tuple(size))

    def axes_at(row: int, column: int) -> Axes:
        left, top = margin + (cell + gap) * [column, row]
        if column:
            left += 0.08  # sets evaluation apart
        box = (left, size[1] - top - cell[1], *cell)
        axes = figure.add_axes(tuple(box / np.tile(size, 2)), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    for row in range(rows):
        first = row * columns
        axes = axes_at(row, 0)
        _show(axes, plain[first])
        axes.set_ylabel(names[first], rotation=0, ha="right", va="center")
        if row == 0:
            axes.set_title("evaluation", fontsize=9, pad=4)
        for column in range(columns):
            axes = axes_at(row, column + 1)
            _show(axes, seen[first + column])
            if row == 0 and column == 0:
                axes.set_title("training", fontsize=9, pad=4, loc="left")
            if is_mixed:
                axes.set_xlabel(_shares(targets[first + column], names), fontsize=7, labelpad=2)
    figure.text(0.08 / size[0], 1 - 0.08 / size[1], "\n".join(lines), va="top", fontsize=10)
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    is_grey = image.shape[-1] == 1
    options: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if is_grey else {}
    axes.imshow(image[..., 0] if is_grey else image, interpolation="nearest", **options)


def _shares(target: np.ndarray, names: Sequence[str]) -> str:
    """The classes of a target with their shares, a line for each."""
    shares: dict[str, float] = {}
    for number in map(int, np.flatnonzero(target)):
        shares[names[number]] = shares.get(names[number], 0.0) + float(target[number])
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return "\n".join(f"{100 * share:.0f} % {name}" for name, share in ranked if share >= 0.005)


def _shortened(text: str, length: int) -> str:
    """The text, without its beginning where it is too long: paths differ at their ends."""
    return text if len(text) <= length else "…" + text[1 - length :]
