"""Fine-tunes a network that knows other pictures, and trains the same from scratch beside it.

    python examples/fine_tune.py                       # on pictures that it draws
    python examples/fine_tune.py --data photographs --model resnet50 --weights imagenet --frozen C4
    python examples/fine_tune.py --data photographs --model resnet18 --weights timm/resnet18.a1_in1k

Names of networks and weights are those of `keras-resnet train`. Without arguments the weights are
those that come with the package, and the photographs 160 drawings of four of the classes that these
weights know, which flatters them. After six epochs of four steps each, of 32 images to test on:

    run      ...  best test  at epoch  last test  time  images/s
    tuned    ...    100.00%         4    100.00%   6 s       188
    scratch  ...     87.50%         5     87.50%   8 s       134
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pictures import write_photographs

import keras_resnet
from keras_resnet.quiet import import_tensorflow


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains twice, and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a directory per class; default: drawn ones")
    parser.add_argument("--model", default="resnet20", metavar="NAME", help="default: resnet20")
    parser.add_argument("--weights", default="cifar10", help="default: cifar10, in the package")
    parser.add_argument("--frozen", default="C3", metavar="LEVEL", help="stays as it is; C3")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="default: 6")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tune"), help="for both runs")
    options = parser.parse_args(arguments)

    import_tensorflow()
    from keras_resnet import data, training

    folder = options.data or write_photographs(options.out / "photographs")
    images = data.load(f"folder:{folder}")
    names = images.class_names  # of the directories
    print(f"{images.train.examples} images to train, of {', '.join(names)}")

    def build(weights: str | None) -> Any:
        model = keras_resnet.create_model(options.model, classes=len(names), class_names=names)
        if weights is not None:
            keras_resnet.load_weights(model, weights, skip_head=True)  # the classes are others
        return model

    scratch = training.get_recipe("finetune").replace(
        epochs=options.epochs, frozen="", frozen_epochs=0
    )
    # The stem and the stages up to this one never train. With fewer `frozen_epochs` than epochs,
    # everything trains in the rest of them, at what is left of the rate.
    tuned = scratch.replace(frozen=options.frozen, frozen_epochs=options.epochs)
    for name, recipe in {"tuned": tuned, "scratch": scratch}.items():
        weights = options.weights if name == "tuned" else None
        run_dir = options.out / name
        print(f"{run_dir}:")
        training.fit(lambda w=weights: build(w), images, recipe, run_dir=run_dir, force=True)
    print(training.compare([options.out / "tuned", options.out / "scratch"]))


if __name__ == "__main__":
    main()
