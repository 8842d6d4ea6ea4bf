"""A deeper network that begins as a shallower one: the construction of the paper, as a start.

    python examples/deeper.py cifar10/resnet20 resnet56 --out resnet56.keras
    keras-resnet train --model resnet56 --weights resnet56.keras --data tfds:cifar10 --out deeper

He et al. 2015 (section 1) say why a deeper network need not be worse: copy the layers of the
shallower one, and let the added ones be the identity. In a residual network that is one number per
channel: a block whose last normalization scales by zero adds nothing, and behind a ReLU
`relu(x + 0)` is `x`. So each stage of the deeper network gets the blocks of the shallower one, and
behind them blocks that are the identity until training moves them. Layers of a plain network would
have to learn the identity first.

The file is written if both networks give the same probabilities for random pictures.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import keras_resnet
from keras_resnet.files import atomic_file, refuse_existing
from keras_resnet.quiet import import_tensorflow

PICTURES, TOLERANCE = 32, 1e-4


def deepened(shallow: Any, name: str) -> Any:
    """The network of a registry name that computes what the shallower one does.

    Raises:
        ValueError: if it is not the shallower one with more blocks, or cannot begin as it.
    """
    row = shallow.architecture
    target = keras_resnet.get_architecture(name).replace(zero_init_residual=True)
    same = {"name": row.name, "blocks": row.blocks, "source": row.source}
    if target.replace(**same) != row.replace(zero_init_residual=True):
        raise ValueError(f"{name} differs from {row.name} in more than the number of blocks")
    deep = keras_resnet.create_model(
        target,
        classes=shallow.output_shape[-1],
        input_shape=shallow.input_shape[1:],
        preprocessing=shallow.preprocessing,
        class_names=shallow.class_names,
    )
    known = {layer.name: layer for layer in shallow.layers if layer.weights}
    if missing := known.keys() - {layer.name for layer in deep.layers}:
        raise ValueError(f"{name} has no place for {min(missing)} of {row.name}")
    for layer in deep.layers:
        if layer.name in known:
            layer.set_weights(known[layer.name].get_weights())
    pixels = np.random.default_rng(0).uniform(0, 255, (PICTURES, *shallow.input_shape[1:]))
    images = shallow.preprocessing(pixels.astype("float32"))
    before, after = (np.asarray(network(images, training=False)) for network in (shallow, deep))
    # The same operations on the same numbers, and additions of zero between them: the same bits on
    # a CPU, while a GPU may choose another algorithm for the same layer.
    if (difference := np.abs(after - before).max() / before.max()) > TOLERANCE:
        raise ValueError(f"{name} cannot begin as {row.name}: they differ by {difference:.2%}")
    return deep


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the deeper network, and writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shallow", help="a file, or what from_pretrained takes")
    parser.add_argument("deep", metavar="NAME", help="see keras-resnet list")
    parser.add_argument("--out", type=Path, required=True, help="a .keras file to write")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".keras":
        parser.error(f"--out must be a .keras file. Received: {options.out}")
    import_tensorflow()
    try:
        refuse_existing(options.out, force=False)
        shallow = keras_resnet.from_pretrained(options.shallow)
        deep = deepened(shallow, options.deep)
        with atomic_file(options.out, force=False) as temporary:
            deep.save(temporary)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(
        f"{options.out}: {deep.count_params():,} weights; {shallow.count_params():,} of them known"
    )


if __name__ == "__main__":
    main()
