"""Quantization in training beside quantization after it.

    python examples/quantization_aware.py
    python examples/quantization_aware.py --run runs/own/run

Without a run, it trains the network of `own_architecture.py`. On one machine the last lines were

    runs/qat/after: 346 of 355 right, 348 in float; 56,234 bytes
    runs/qat/during: 347 of 355 right, 348 in float; 55,802 bytes

One image is no difference: rounding after training loses next to nothing here, so there is next to
nothing to win. More, and the other methods: docs/optimization.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from own_architecture import train

from keras_resnet.quiet import import_tensorflow


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, quantizes in both ways, and prints how many test images each file names right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="run directory to begin with; default: a new one")
    parser.add_argument("--out", type=Path, default=Path("runs/qat"), help="for both bundles")
    options = parser.parse_args(arguments)

    import_tensorflow()
    from keras_resnet import export, training
    from keras_resnet.export import optimize

    run_dir = options.run or options.out / "run"
    if options.run is None:
        train(run_dir)
    run = training.load_run(run_dir)
    images = run.load_data()
    common = {"max_drop": 0.02, "force": True}
    after = export.to_tflite(
        run.model, options.out / "after", calibration=images, evaluation=images, **common
    )
    # One epoch more, at a hundredth of the rate, with the rounding of the file in the network.
    recipe = optimize.fine_tuning(run.recipe, "qat", epochs=1)
    during = optimize.quantization_aware(
        run.model, images, recipe, options.out / "during", **common
    )
    for bundle in (after, during):
        accuracy = bundle.verification.accuracy
        print(
            f"{bundle.path}: {accuracy.exported_correct} of {accuracy.examples} right, "
            f"{accuracy.source_correct} in float; {bundle.model_path.stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
