"""Trains a network on a directory of images, a directory per class, and says what it confuses.

    python examples/train_folder.py                    # on pictures that it draws
    python examples/train_folder.py --data photographs --model resnet18 --epochs 90

Without arguments it trains a ResNet-8 on 128 drawn pictures in ten epochs of four steps each, which
shows how it is done and nothing else. On one machine it ended in

    class       precision  recall  images
    airplane       100.0%  100.0%       8
    automobile     100.0%  100.0%       8
    ship            88.9%  100.0%       8
    truck          100.0%   87.5%       8
    truck was called ship once
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pictures import write_photographs

import keras_resnet
from keras_resnet.quiet import import_tensorflow


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and prints precision and recall by class."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="directory of images; default: drawn ones")
    parser.add_argument("--model", default="resnet8", metavar="NAME", help="default: resnet8")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--out", type=Path, default=Path("runs/train_folder"), metavar="RUN")
    options = parser.parse_args(arguments)

    import_tensorflow()
    from keras_resnet import data, training

    folder = options.data or write_photographs(options.out / "photographs")
    images = data.load(f"folder:{folder}")  # without train/ and test/, split 80 to 20
    print(f"{images.train.examples} images to train, {images.test.examples} to test")
    result = training.fit(
        lambda: keras_resnet.create_model(options.model, classes=len(images.class_names)),
        images,
        training.get_recipe("small").replace(epochs=options.epochs, warmup_epochs=1),
        run_dir=options.out,
        precise_bn=True,  # in so few steps the moving averages fall behind
        force=True,
    )
    print(result.evaluation.table(images.class_names))
    print(f"{options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")


if __name__ == "__main__":
    main()
