"""A residual block of one's own: the paper's H(x) = F(x) + x, with any branch F.

python examples/own_block.py
"""

import keras

from keras_resnet import blocks


def block(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """A depthwise-separable branch; `residual` finds the shortcut that fits."""

    def branch(y: keras.KerasTensor) -> keras.KerasTensor:
        y = keras.layers.SeparableConv2D(filters, 5, strides=2, padding="same")(y)
        return blocks.DEFAULT.norm(y)

    return blocks.residual(x, branch)


image = keras.Input((32, 32, 3))
x = blocks.DEFAULT.conv(image, 16, 3)
for filters in (32, 64, 128):
    x = block(x, filters)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(image, keras.layers.Dense(10)(x))
model.summary()
