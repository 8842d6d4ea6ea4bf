"""How far every layer moves what it is given: the analysis of He et al. 2015, Figure 7.

    python examples/layer_responses.py runs/degradation/plain20 runs/degradation/resnet20

Reads trained runs, feeds them test images of their own data, and measures the standard deviation
of every convolution's output behind its batch normalization and before the addition or the
nonlinearity: in a residual network, what the layer adds to an identity. Draws it by depth, and
sorted as in the paper, and prints the mean of each network; `--csv` writes the figures.
"""

import argparse
import csv
import re
from collections.abc import Sequence
from pathlib import Path

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_resnet import training  # noqa: E402
from keras_resnet.files import atomic_file  # noqa: E402
from keras_resnet.tables import columns  # noqa: E402
from keras_resnet.training.runs import Run  # noqa: E402

IMAGES = 512


def responses(run: Run) -> dict[str, float]:
    """Standard deviations of the normalized outputs of the convolutions, by layer."""
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
    return {
        name: float(np.std(array.astype(np.float32)))
        for name, array in zip(names, arrays, strict=True)
    }


def draw(measured: dict[str, dict[str, float]], path: Path) -> None:
    """By depth above, sorted below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    for number, (name, values) in enumerate(measured.items()):
        ordered = list(values.values())
        style = {"color": f"C{number}", "lw": 1.5, "marker": ".", "label": name}
        above.plot(range(1, len(ordered) + 1), ordered, **style)
        below.plot(range(1, len(ordered) + 1), sorted(ordered, reverse=True), **style)
    above.set(title="by depth", xlabel="layer")
    below.set(title="sorted", xlabel="layer, the largest first")
    for axes in (above, below):
        axes.set(ylabel="standard deviation", ylim=(0, None))
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

    measured = {run.path.name: responses(run) for run in runs}
    draw(measured, options.picture)
    if options.csv:
        with atomic_file(options.csv) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["network", "layer", "standard deviation"])
            for name, values in measured.items():
                writer.writerows((name, layer, f"{value:.4f}") for layer, value in values.items())
    rows = [("network", "layers", "mean", "smallest", "largest")]
    for name, values in measured.items():
        sizes = list(values.values())
        figures = (np.mean(sizes), min(sizes), max(sizes))
        rows.append((name, str(len(sizes)), *(f"{figure:.3f}" for figure in figures)))
    print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()
