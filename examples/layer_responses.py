"""How far every layer moves what it is given: the analysis of He et al. 2015, Figure 7.

    python examples/layer_responses.py runs/degradation/plain20 runs/degradation/resnet20

Reads trained runs, feeds them test images of their own data, and measures the standard deviation
of every convolution's output behind its batch normalization and before the addition or the
nonlinearity: in a residual network, what the layer adds to an identity. Draws it by depth, and
sorted as in the paper, and prints the mean of each network; `--csv` writes the figures.

Beside it stands how far training has blown up each convolution: the norm of its kernel over that of
its initialization. Behind a kernel that is tenfold, batch normalization gives the same output, and
a gradient of a tenth.
"""

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_resnet import training  # noqa: E402
from keras_resnet.files import atomic_file  # noqa: E402
from keras_resnet.tables import columns  # noqa: E402
from keras_resnet.training.runs import Run  # noqa: E402

IMAGES = 512


class Layer(NamedTuple):
    """What is measured of a convolution and of the normalization behind it."""

    response: float
    growth: float


def measure(run: Run) -> dict[str, Layer]:
    """The convolutions of a network in the order of depth, by the names of their normalizations."""
    model = run.model
    images, _ = run.load_data().test.take(IMAGES, model.input_shape[1:], run.preprocessing)
    names = [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and re.fullmatch(r"stem_norm|.*_norm\d", layer.name)
    ]
    outputs = keras.Model(model.input, [model.get_layer(name).output for name in names])
    arrays = outputs.predict(run.preprocessing(images), verbose=0)
    # Those of a training in half precision are too coarse to be summed as they are.
    deviations = [float(np.std(array.astype(np.float32))) for array in arrays]
    kernels = [model.get_layer(name.replace("_norm", "_conv")).kernel for name in names]
    # He et al. 2015b draw with a variance of 2 / (height x width x filters).
    growths = [np.linalg.norm(kernel) / np.sqrt(2 * kernel.shape[2]) for kernel in kernels]
    return {
        name: Layer(deviation, float(growth))
        for name, deviation, growth in zip(names, deviations, growths, strict=True)
    }


def draw(measured: dict[str, dict[str, Layer]], path: Path) -> None:
    """Responses by depth, sorted, and the growth of kernels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(9, 8.5), layout="constrained")
    above, middle, below = figure.subplots(3, 1)
    for number, (name, layers) in enumerate(measured.items()):
        style = {"color": f"C{number}", "lw": 1.5, "marker": ".", "label": name}
        deviations, growths = zip(*layers.values(), strict=True)
        depths = range(1, len(layers) + 1)
        above.plot(depths, deviations, **style)
        middle.plot(depths, sorted(deviations, reverse=True), **style)
        below.plot(depths, growths, **style)
    above.set(title="by depth", xlabel="layer", ylabel="standard deviation")
    middle.set(title="sorted", xlabel="layer, the largest first", ylabel="standard deviation")
    below.set(title="kernels, by depth", xlabel="layer", ylabel="norm / at initialization")
    for axes in (above, middle, below):
        axes.set(yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    above.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, draws, and prints the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--picture", type=Path, default=Path("layer_responses.png"))
    parser.add_argument("--csv", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    try:
        runs = [training.load_run(path) for path in options.runs]
    except (ValueError, OSError) as error:
        parser.error(str(error))

    measured = {run.path.name: measure(run) for run in runs}
    draw(measured, options.picture)
    if options.csv:
        with atomic_file(options.csv) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["network", "layer", "standard deviation", "growth"])
            for name, layers in measured.items():
                for layer, (deviation, growth) in layers.items():
                    writer.writerow((name, layer, f"{deviation:.4f}", f"{growth:.4f}"))
    rows = [("network", "layers", "mean", "smallest", "largest", "growth")]
    for name, layers in measured.items():
        deviations, growths = zip(*layers.values(), strict=True)
        figures = (np.mean(deviations), min(deviations), max(deviations), max(growths))
        rows.append((name, str(len(layers)), *(f"{figure:.3f}" for figure in figures)))
    print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()
