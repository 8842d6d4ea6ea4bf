"""Exports a trained network, checks the file as its receiver would, and names pictures with it.

    python examples/export_and_classify.py             # the ResNet-20 that comes with the package
    python examples/export_and_classify.py --run runs/train_folder --scheme float32

The network has 32 x 32 pixels and ten classes, and the pictures are drawn. It prints

    scheme int8
    golden images 32: top-1 agreement 100.0%, largest difference 0.079 (mean 0.0042), ...
    passed
    ship.png ship 99.6% airplane 0.3%
    airplane.png airplane 99.9% bird 0.1%
    truck.png truck 97.6% automobile 2.4%
    automobile.png automobile 99.8% truck 0.2%
    runs/export/int8: golden.npz, labels.txt, manifest.json, model.tflite, report.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pictures import write_pictures

import keras_resnet
from keras_resnet import export
from keras_resnet.quiet import import_tensorflow
from keras_resnet.weights import calibration_images


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, verifies, classifies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="run directory of a training")
    parser.add_argument("--scheme", default="int8", help="float32, float16, …; default: int8")
    parser.add_argument("--out", type=Path, default=Path("runs/export"), help="to write into")
    options = parser.parse_args(arguments)

    import_tensorflow()
    if options.run is None:
        model = keras_resnet.ResNet20(weights="cifar10")
        proof = {"calibration": calibration_images("cifar10")}  # they come with the weights
    else:
        run = keras_resnet.training.load_run(options.run)
        model, images = run.model, run.load_data()
        proof = {"calibration": images, "evaluation": images}
    path = options.out / options.scheme
    try:
        export.to_tflite(model, path, options.scheme, force=True, **proof)
    except export.ExportRejected as rejection:  # it lost too much: there is no bundle
        sys.exit(f"{rejection.report}\nmore in {path}.rejected.html")

    # From here on the bundle is all that is needed, on any machine, without TensorFlow.
    print(export.verify(path))
    classifier = export.Classifier(path)
    for picture in write_pictures(options.out / "pictures"):
        ranking = classifier(picture, top=2)
        print(picture.name, *(f"{label} {probability:.1%}" for label, probability in ranking))
    print(f"{path}: {', '.join(sorted(file.name for file in path.iterdir()))}")


if __name__ == "__main__":
    main()
