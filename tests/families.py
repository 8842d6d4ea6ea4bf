"""A small network of every family, and the page that says how each is exported.

`page()` makes docs/schemes.md from the files themselves.
"""

import functools

import keras
import numpy as np
from toys import warmed

import keras_resnet
from keras_resnet.export import SCHEMES, conversion, quantizer
from keras_resnet.export.benchmarking import applied_delegate
from keras_resnet.export.inspection import read_graph
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork
from keras_resnet.export.verification import compare, judge

SHAPE = (64, 64, 3)  # a network for ImageNet leaves 2 x 2 pixels of it

# Name on the page: (row of the table of architectures, what is changed in it).
FAMILIES = {
    "plain, CIFAR": ("plain20", {}),
    "basic, CIFAR, option A": ("resnet20", {}),
    "basic, CIFAR, option B": ("resnet20", {"shortcut": "B"}),
    "basic": ("resnet18", {}),
    "bottleneck, v1": ("resnet50", {}),
    "bottleneck, v1.5": ("resnet50_v1_5", {}),
    "bottleneck, dilated": ("resnet50_v1_5", {"output_stride": 8}),
    "pre-activation": ("resnet50_preact", {}),
    "keras.applications' V2": ("resnet50_v2", {"blocks": (2, 1, 1, 1)}),
    "wide": ("wrn_16_8", {}),
    "ResNeXt": ("resnext50_32x4d", {"cardinality": 4, "base_width": 16}),
    "ResNet-D": ("resnet50d", {}),
    "squeeze-and-excitation": ("seresnet50", {}),
    "ECA, D": ("ecaresnet50d", {}),
    "ResNet-RS": ("resnetrs50", {}),
    "anti-aliased": ("resnetblur50", {}),
    "stochastic depth and dropout": ("resnet18", {"stochastic_depth": 0.5, "dropout": 0.5}),
    "group normalization": ("resnet18", {"norm": "group"}),
}
# Its normalization negates and takes inverse roots, for which TFLite has no integer kernels.
FLOAT_ONLY = ("group normalization",)

HEAD = """\
# Number formats and families

Made by tests/generate.py from exported files, and checked by tests/test_schemes.py: of every family
a small network (a block per stage, {size} x {size} pixels) is converted to every scheme, proved to
be of that scheme from the flatbuffer, run by LiteRT and compared with the Keras model.

A cell says in how many pieces XNNPACK runs the network up to its logits, and which operators it
leaves to LiteRT's own kernels. DEQUANTIZE and SOFTMAX towards the end of `int8` and `int16x8`
files, and the QUANTIZE in front, are not counted. `int16x8` is computed by reference kernels, for
which there is no delegate: it is many times slower than any other.

"""
# Float conversions at the ends of a file, which are no part of the network.
_ENDS = ("QUANTIZE", "DEQUANTIZE", "SOFTMAX")


def images(count: int, shape=SHAPE) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def of_family(family: str) -> keras.Model:
    """A small network of a family: a block per stage, few channels."""
    keras.utils.set_random_seed(0)
    name, changes = FAMILIES[family]
    row = keras_resnet.get_architecture(name)
    stages = len(row.blocks)
    small = {"name": "small", "blocks": (1,) * stages, "widths": (16, 32, 64, 128)[:stages]}
    return warmed(
        keras_resnet.create_model(row.replace(**small | changes), input_shape=SHAPE, classes=10)
    )


class Exports:
    """The files of a family, by scheme."""

    def __init__(self, family: str):
        model = of_family(family)
        self.network = SourceNetwork(model, model.preprocessing)
        self.pixels = images(16)
        self.expected = self.network.predict(self.pixels)

    @functools.cache  # noqa: B019, there are as many as families
    def file(self, scheme: str) -> bytes:
        """The file in a scheme; what several have in common is computed once."""
        if not SCHEMES[scheme].is_calibrated:
            return conversion.convert_float(self.network, scheme)
        options = conversion.options_of(SCHEMES[scheme], "auto")
        return quantizer.rewrite(self.file("float32"), self.observed, options)

    @functools.cached_property
    def observed(self) -> dict[int, quantizer.Observation]:
        """What the float32 file computes on the images."""
        return quantizer.observe(self.file("float32"), self.pixels)

    def verdict(self, scheme: str):
        """The verdict on the file."""
        actual = Runner(self.file(scheme))(self.pixels)
        real = read_graph(self.file(scheme)).scheme
        return judge(scheme, real, compare(self.expected, actual))

    def cell(self, scheme: str) -> str:
        """How XNNPACK runs the file."""
        if scheme == "int16x8":
            return "reference kernels"
        delegate = applied_delegate(Runner(self.file(scheme)).interpreter)
        outside = [f"{n} {name}" for name, n in delegate.outside.items() if name not in _ENDS]
        pieces = "1 partition" if delegate.partitions == 1 else f"{delegate.partitions} partitions"
        return ", ".join([pieces, *outside])


@functools.cache
def exports(family: str) -> Exports:
    """Made once for all tests."""
    return Exports(family)


def row(family: str) -> str:
    """A family's line of the table."""
    cells = [
        "none" if family in FLOAT_ONLY and SCHEMES[scheme].is_calibrated
        else exports(family).cell(scheme)
        for scheme in SCHEMES
    ]  # fmt: skip
    return f"| {family} | {' | '.join(cells)} |\n"


def page() -> str:
    """docs/schemes.md."""
    head = f"| family | {' | '.join(f'`{scheme}`' for scheme in SCHEMES)} |\n"
    lines = [head, "|---" * (1 + len(SCHEMES)) + "|\n", *map(row, FAMILIES)]
    return HEAD.format(size=SHAPE[0]) + "".join(lines)
