"""A feature pyramid and a tiny detection head upon a ResNet, in pure Keras.

    python examples/detector_features.py
    python examples/detector_features.py --model resnet50 --weights imagenet

A skeleton to train with a loss and data of one's own: it finds nothing yet. It prints

    P3_logits stride  8: 32 x 32 x 27
    P3_boxes  stride  8: 32 x 32 x 36
    P4_logits stride 16: 16 x 16 x 27
    P4_boxes  stride 16: 16 x 16 x 36
    P5_logits stride 32:  8 x  8 x 27
    P5_boxes  stride 32:  8 x  8 x 36
    11,427,711 weights, 11,186,112 of them in the backbone

`export.to_tflite(model, path, "float32", outputs="features", preprocessing=backbone.preprocessing)`
writes it for a device.
"""

import argparse
from collections.abc import Sequence

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_resnet  # noqa: E402

SIZE, CHANNELS, CLASSES, ANCHORS = 256, 64, 3, 9


def pyramid(features: dict[str, keras.KerasTensor]) -> dict[str, keras.KerasTensor]:
    """C3 to C5 into P3 to P5 of equal depth, from the coarsest down (Lin et al. 2017)."""
    maps, coarser = {}, None
    for level in ("5", "4", "3"):
        x = keras.layers.Conv2D(CHANNELS, 1, name=f"lateral{level}")(features[f"C{level}"])
        if coarser is not None:
            x = keras.layers.Add(name=f"sum{level}")([x, keras.layers.UpSampling2D(2)(coarser)])
        maps[f"P{level}"] = keras.layers.Conv2D(CHANNELS, 3, padding="same", name=f"P{level}")(x)
        coarser = x
    return maps


def detector(backbone: keras.Model) -> keras.Model:
    """Maps of logits `(h, w, anchors * classes)` and boxes `(h, w, anchors * 4)` per level."""
    # The same layers for all levels, as in RetinaNet.
    tower = keras.layers.Conv2D(CHANNELS, 3, padding="same", activation="relu", name="tower")
    logits = keras.layers.Conv2D(ANCHORS * CLASSES, 3, padding="same", name="logits")
    boxes = keras.layers.Conv2D(ANCHORS * 4, 3, padding="same", name="boxes")
    outputs = {}
    for level, x in sorted(pyramid(backbone.output).items()):
        x = tower(x)
        outputs |= {f"{level}_logits": logits(x), f"{level}_boxes": boxes(x)}
    return keras.Model(backbone.input, outputs, name="detector")


def main(arguments: Sequence[str] | None = None) -> keras.Model:
    """Builds it, shows it an image, and prints what comes out of which level."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", metavar="NAME", help="default: resnet18")
    parser.add_argument("--weights", help="of the backbone, e.g. imagenet; default: random ones")
    options = parser.parse_args(arguments)

    backbone = keras_resnet.feature_model(
        options.model, ["C3", "C4", "C5"], input_shape=(SIZE, SIZE, 3), weights=options.weights
    )
    keras_resnet.freeze(backbone, up_to="C2")  # and every batch normalization: batches are small
    model = detector(backbone)
    photograph = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    image = backbone.preprocessing.fit(photograph, (SIZE, SIZE))
    found = model.predict(backbone.preprocessing(image[None]), verbose=0)
    for name, values in found.items():
        _, height, width, channels = values.shape
        print(f"{name:9} stride {SIZE // height:2}: {height:2} x {width:2} x {channels}")
    print(f"{model.count_params():,} weights, {backbone.count_params():,} of them in the backbone")
    return model


if __name__ == "__main__":
    main()
