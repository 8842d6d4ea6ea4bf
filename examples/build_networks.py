"""Networks by builder and by name, and where one of them does its work.

    python examples/build_networks.py

prints, after the parameters of all networks whose names begin with resnet50:

    resnet20: 270,708 weights; resnet50, multiply-adds by stage:
    stem    40 x 40 x 64  ###
    C2     40 x 40 x 256  #################
    C3     20 x 20 x 512  ########################
    C4    10 x 10 x 1024  ###################################
    C5      5 x 5 x 2048  ###################
    head               5

`keras-resnet info resnet50` has the same in figures.
"""

import keras_resnet
from keras_resnet.quiet import import_tensorflow


def main() -> None:
    """Builds two networks and prints the stages of one."""
    import_tensorflow()
    from keras_resnet.counting import count

    for name in keras_resnet.list_models("resnet50*"):
        print(f"{name:16}{keras_resnet.get_counts(name).parameters:>12,} parameters")
    small = keras_resnet.create_model("resnet20", classes=4)  # by name
    large = keras_resnet.ResNet50(classes=5, input_shape=(160, 160, 3))  # as in keras.applications
    print(f"{small.name}: {small.count_params():,} weights; {large.name}, multiply-adds by stage:")
    for stage in count(large):
        shape = " x ".join(map(str, stage.output_shape))
        print(f"{stage.stage:5}{shape:>15}  {'#' * round(stage.multiply_adds / 2e7)}".rstrip())


if __name__ == "__main__":
    main()
