"""The public builders, and the model class that remembers what it is."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet import blocks
from keras_resnet.architecture import (
    BUILDERS,
    Architecture,
    BlockPlan,
    Shortcut,
    get_architecture,
)
from keras_resnet.files import atomic_file
from keras_resnet.layers import BlurPool
from keras_resnet.preprocessing import Preprocessing

RECORD = "keras_resnet"
"""Where a file of weights says what it is of: architecture, preprocessing, classes, as JSON."""

# Options of a builder that change its row of the table; their defaults are the row's values.
_OVERRIDES = (
    "shortcut",
    "norm",
    "norm_momentum",
    "norm_epsilon",
    "zero_init_residual",
    "block_dropout",
    "stochastic_depth",
    "dropout",
    "output_stride",
)


@keras.saving.register_keras_serializable(package="keras_resnet")
class ResidualNetwork(keras.Model):
    """A functional model that carries its architecture, preprocessing and class names.

    They are part of the configuration, so they survive `save` and `load_model`. (A copy made by
    `keras.models.clone_model` carries none of them: Keras does not pass them on.)

    Attributes:
        architecture: the `Architecture` that it was built from, or None.
        preprocessing: the `Preprocessing` that its input expects, or None if not known.
        class_names: a tuple of names in the order of the outputs, or None if not known.
    """

    # The names *args and **kwargs are what tells Keras that this class is a functional model.
    def __init__(
        self,
        *args: Any,
        architecture: Architecture | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        with _deep_graphs():
            super().__init__(*args, **kwargs)
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.class_names = None if class_names is None else tuple(class_names)

    def save_weights(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        *,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        """Keras's `save_weights`; `.weights.h5` and `.safetensors` files also say what they are of.

        Args:
            filepath: `.weights.h5` or `.safetensors`, whose arrays are called `layer/weight`.
            overwrite: whether a file that is there may be replaced.
            dtype: of a `.safetensors` file: `"float32"`, or `"float16"` for half the size.
            **options: those of Keras.

        Raises:
            FileExistsError: if there is such a file and it may not be replaced.
            ValueError: if a weight is too large for `dtype`.
        """
        name = os.fspath(filepath)
        if name.endswith(".safetensors"):
            with atomic_file(filepath, force=overwrite) as path:
                self._write_safetensors(path, dtype)
            return
        if not name.endswith(".weights.h5") or self.architecture is None:
            super().save_weights(filepath, overwrite=overwrite, **options)
            return
        import h5py

        with atomic_file(filepath, force=overwrite) as path:
            super().save_weights(path, **options)
            with h5py.File(path, "r+") as file:
                file[RECORD] = json.dumps(self._record(self.architecture))

    def _write_safetensors(self, path: Path, dtype: str) -> None:
        if dtype not in ("float32", "float16") or self.architecture is None:
            raise ValueError(
                "A .safetensors file holds a network of this package as 'float32' or 'float16'. "
                f"Received: dtype={dtype!r} and the architecture {self.architecture!r}"
            )
        from safetensors.numpy import save_file

        values = {
            f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
            for layer in self.layers
            for variable in layer.weights
        }
        with np.errstate(over="ignore"):
            arrays = {name: np.ascontiguousarray(x, dtype) for name, x in values.items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(
                    f"Weights must be finite in the type that they are stored in. Received: {name} "
                    f"with values up to {np.abs(values[name]).max():.4g}, for dtype={dtype!r}"
                )
        record = json.dumps(self._record(self.architecture))
        save_file(arrays, path, metadata={RECORD: record})

    def _record(self, architecture: Architecture) -> dict[str, Any]:
        """What a file of weights says of its network."""
        head = next((layer for layer in self.layers if layer.name == "logits"), None)
        return {
            "architecture": architecture.to_dict(),
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "class_names": self.class_names and list(self.class_names),
            "classes": None if head is None else head.units,
            "channels": self.inputs[0].shape[-1],
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "architecture": self.architecture and self.architecture.to_dict(),
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "class_names": self.class_names and list(self.class_names),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ResidualNetwork:
        config = dict(config)
        if config.get("architecture"):
            config["architecture"] = Architecture.from_dict(config["architecture"])
        if config.get("preprocessing"):
            config["preprocessing"] = Preprocessing.from_dict(config["preprocessing"])
        with _deep_graphs():
            return super().from_config(config, custom_objects=custom_objects)


def create_model(name: str | Architecture, **arguments: Any) -> ResidualNetwork:
    """Builds a network by its registry name, e.g. `create_model("resnet50", classes=10)`.

    Args:
        name: a name that `list_models` knows, or an `Architecture` of one's own.
        **arguments: those of the builder of that name (`help(keras_resnet.ResNet50)`).

    Raises:
        ValueError: for an unknown name or a bad argument.
    """
    architecture = name if isinstance(name, Architecture) else get_architecture(name)
    return _build(architecture, **arguments)


def feature_model(
    network: str | Architecture | ResidualNetwork,
    levels: Sequence[str] | None = None,
    **arguments: Any,
) -> ResidualNetwork:
    """The multi-scale features that detectors and segmenters build upon.

    `C2`, `C3`, ... are the outputs of the stages, `stage2_block<last>_out` and so on. Their sizes
    are those of the input over 4, 8, 16 and 32; in a CIFAR network, of three stages, over 1, 2 and
    4; in `resnet50_v2` and its like, which stride at the end of a stage, over 8, 16, 32 and 32.
    Those of a pre-activation network are the sums, before the normalization that the next block
    starts with.

    Args:
        network: a registry name, an `Architecture`, or a ready model, whose layers are then shared,
            e.g. one of `from_pretrained`.
        levels: which stages, in any order; None for all, `("C2", "C3", "C4", "C5")` but in a CIFAR
            network.
        **arguments: the builder's, for a name, e.g. `weights` or `output_stride`; none that is
            about the classifier.

    Returns:
        A model from `(batch, height, width, channels)` to a dictionary of feature maps
        `(batch, h, w, c)`, in the order of `levels`.

    Raises:
        ValueError: for a level that the network has not, arguments of the classifier, or arguments
            beside a ready model.
    """
    ready = network if isinstance(network, keras.Model) else None
    out_of_place = set(arguments) & {
        "include_top",
        "pooling",
        "classes",
        "classifier_activation",
        "class_names",
    }
    if out_of_place or (ready is not None and arguments):
        raise ValueError(
            "A feature model has no classifier, and a ready model is built already. "
            f"Received: {', '.join(sorted(out_of_place or arguments))}"
        )
    architecture = getattr(network, "architecture", None)
    if ready is None:
        architecture = network if isinstance(network, Architecture) else get_architecture(network)
    if not isinstance(architecture, Architecture):
        raise ValueError(
            "Argument `network` must be a model of this package. "
            f"Received: a {type(network).__name__} named {getattr(network, 'name', None)!r}"
        )
    levels = architecture.levels if levels is None else levels
    _check_levels(architecture, levels)
    model = ready
    if model is None:
        model = create_model(architecture, include_top=False, **arguments)
    layers = {layer.name: layer for layer in model.layers}
    names = {level: _level_layer(architecture, level) for level in levels}
    if missing := [level for level in levels if names[level] not in layers]:
        raise ValueError(f"The model {model.name!r} ends before {missing[0]}. Received: {levels=}")
    return ResidualNetwork(
        model.inputs[0] if len(model.inputs) == 1 else model.inputs,
        {level: layers[name].output for level, name in names.items()},
        name=f"{model.name}_features",
        architecture=model.architecture,
        preprocessing=model.preprocessing,
    )


def _check_levels(architecture: Architecture, levels: Sequence[str]) -> None:
    if (
        isinstance(levels, str)
        or not levels
        or len(set(levels)) != len(levels)
        or not set(levels) <= set(architecture.levels)
    ):
        raise ValueError(
            f"Argument `levels` must name one or more of {list(architecture.levels)} for "
            f"{architecture.name}, each once. Received: levels={levels!r}"
        )


def _level_layer(architecture: Architecture, level: str) -> str:
    stage = architecture.levels.index(level)
    return f"stage{stage + 2}_block{architecture.blocks[stage]}_out"


def freeze(model: ResidualNetwork, up_to: str | None = None, *, norm: bool = True) -> None:
    """Stops the early layers from training, for fine-tuning. Takes effect at once.

    A frozen batch normalization runs in inference mode: it neither uses nor moves the statistics of
    the batch.

    Args:
        model: a model of this package.
        up_to: the last level to freeze, e.g. `"C3"`: the stem, what stands in front of it, and
            every stage up to that one; `"stem"` for the stem alone, None for nothing.
        norm: whether to freeze the batch normalizations of the whole network besides.

    Raises:
        ValueError: for a level that the network has not.
    """
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, Architecture):
        raise ValueError(
            "Argument `model` must be a model of this package, not one around it. "
            f"Received: a {type(model).__name__} named {model.name!r}"
        )
    levels = ("stem", *architecture.levels)
    if up_to is not None and up_to not in levels:
        raise ValueError(
            f"Argument `up_to` must be None or one of {list(levels)}. Received: up_to={up_to!r}"
        )
    frozen = levels[: levels.index(up_to) + 1] if up_to is not None else ()
    in_front = True  # layers that the network was built upon come before its stem
    for layer in model.layers:
        in_front = in_front and not layer.name.startswith("stem_")
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        stage = "stem" if in_front else stage_of(layer.name)
        if stage in frozen or (norm and is_norm):
            layer.trainable = False
    # A compiled step remembers what it trained.
    model.train_function = None


def stage_of(layer_name: str) -> str:
    """`"stem"`, `"C2"`, `"C3"`, ... or `"head"`: where a layer of this package's models stands."""
    match = re.match(r"stage(\d+)_", layer_name)
    if match:
        return f"C{match[1]}"
    return "stem" if layer_name.startswith("stem_") else "head"


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a `.keras` file, in a fresh process too, whatever was imported before.

    Nothing in the file is executed: Keras's safe mode is on.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Keras model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such model file: {path}")
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ValueError(f"Not a Keras model: {path} is no .keras file, or not a whole one")
    with _deep_graphs(), _readable(path, "Not a Keras model"):
        return keras.saving.load_model(path, compile=False)


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str], complaint: str) -> Iterator[None]:
    """Brings what Keras, h5py and zipfile raise on a damaged file to one `ValueError`."""
    try:
        yield
    except (KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{complaint}: {os.fspath(path)} cannot be read ({error})") from error


def split_head(network: keras.Model) -> tuple[keras.Model, bool]:
    """A classifier up to its logits, and True; or all of it, and False, if it shows none.

    The layers are shared with `network`. Logits are what a loss wants, since their cross-entropy
    is exact where a softmax has underflowed, and what a quantized file wants, since an 8-bit
    softmax cannot rank a thousand classes.

    Raises:
        ValueError: if the network ends in something else than logits or a softmax.
    """
    last = network.layers[-1]
    if not isinstance(last, keras.layers.Dense | keras.layers.Activation | keras.layers.Softmax):
        raise ValueError(
            "A classifier must end in a Dense, Activation or Softmax layer. Received: a model that "
            f"ends in {last.name!r}, a {type(last).__name__}"
        )
    activation = getattr(last, "activation", keras.activations.linear)
    is_softmax = isinstance(last, keras.layers.Softmax) or activation is keras.activations.softmax
    if is_softmax and isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        with _deep_graphs():
            return keras.Model(network.inputs, last.input, name=network.name), True
    if is_softmax:
        return network, False
    if activation is keras.activations.linear:
        return network, True
    raise ValueError(
        "A classifier must end in logits or in a softmax. Received: a model that ends in the layer "
        f"{last.name!r} with the activation {activation.__name__!r}"
    )


def check_classes(model: keras.Model, data_name: str, class_names: Sequence[str]) -> None:
    """Raises `ValueError` unless a classifier's classes are those of labelled images.

    Names are compared where the model knows its own.
    """
    classes = model.output_shape[-1]
    if classes != len(class_names):
        raise ValueError(
            "The model and the data must have the same number of classes. Received: a model with "
            f"{classes}, and {data_name} with {len(class_names)}"
        )
    known = getattr(model, "class_names", None)
    if known is not None and tuple(known) != tuple(class_names):
        ours, theirs = next(
            pair for pair in zip(known, class_names, strict=True) if pair[0] != pair[1]
        )
        raise ValueError(
            "The model and the data must have the same classes in the same order. Received: a "
            f"model with {ours!r} where {data_name} has {theirs!r}"
        )


def _build(
    architecture: Architecture,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    name: str | None = None,
    *,
    sync_bn: bool = False,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    dtype: Any = None,
    **overrides: Any,
) -> ResidualNetwork:
    unknown = sorted(set(overrides) - set(_OVERRIDES))
    if unknown:
        raise TypeError(
            f"Unknown argument {unknown[0]!r} for {architecture.name}. The options are "
            f"{[*_OVERRIDES, 'sync_bn', 'preprocessing', 'class_names', 'dtype']}. "
            f"Received: {unknown[0]}={overrides[unknown[0]]!r}"
        )
    architecture = architecture.replace(**overrides)
    classes = architecture.classes if classes is None else classes
    _check_head(include_top, pooling, classes, class_names)
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise ValueError(
            "Argument `preprocessing` must be a keras_resnet.Preprocessing. "
            f"Received: preprocessing={preprocessing!r}"
        )
    if input_shape is None and input_tensor is None:
        size = architecture.input_size if include_top else None
        input_shape = (size, size, 3)
    _check_weights(weights)
    inputs = _input(input_tensor, input_shape, dtype)

    toolkit = blocks.Toolkit(
        padding=architecture.padding,
        conv_bias=architecture.conv_bias,
        norm_kind=architecture.norm,
        norm_momentum=architecture.norm_momentum,
        norm_epsilon=architecture.norm_epsilon,
        sync_bn=sync_bn,
        dtype=dtype,
    )
    x = _stem(inputs, architecture, toolkit)
    for plan in architecture.plan():
        x = _block(x, architecture, plan, toolkit)
    if architecture.pre_activation:
        x = toolkit.act(toolkit.norm(x, name="post_norm"), name="post_act")
    x = _head(x, include_top, pooling, classes, classifier_activation, architecture.dropout, dtype)

    source = inputs
    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(inputs)
        source = sources[0] if len(sources) == 1 else sources
    model = ResidualNetwork(
        source,
        x,
        name=architecture.name if name is None else name,
        architecture=architecture,
        preprocessing=Preprocessing() if preprocessing is None else preprocessing,
        class_names=class_names if include_top else None,
    )
    if weights is not None:
        from keras_resnet.weights.loading import load_weights

        load_weights(model, weights, preprocessing=preprocessing)
    return model


def _stem(x: Any, architecture: Architecture, toolkit: blocks.Toolkit) -> Any:
    channels = architecture.stem_channels or architecture.widths[0]
    if architecture.stem == "deep":
        for number, filters in enumerate((channels // 2, channels // 2, channels), start=1):
            stride = 2 if number == 1 else 1
            x = toolkit.conv(x, filters, 3, stride=stride, name=f"stem_conv{number}")
            x = toolkit.norm(x, name=f"stem_norm{number}")
            x = toolkit.act(x, name=f"stem_act{number}")
    else:
        size, stride = (7, 2) if architecture.stem == "imagenet" else (3, 1)
        bare = not architecture.stem_norm
        x = toolkit.conv(x, channels, size, stride=stride, bare=bare, name="stem_conv")
        if architecture.stem_norm:
            x = toolkit.norm(x, name="stem_norm")
            x = toolkit.act(x, name="stem_act")
    return x if architecture.stem == "cifar" else _stem_pool(x, architecture, toolkit)


def _stem_pool(x: Any, architecture: Architecture, toolkit: blocks.Toolkit) -> Any:
    options = {"dtype": toolkit.dtype}
    if architecture.stem_pool == "conv":
        x = toolkit.conv(x, x.shape[-1], 3, stride=2, name="stem_pool_conv")
        x = toolkit.norm(x, name="stem_pool_norm")
        return toolkit.act(x, name="stem_pool")
    if architecture.antialias:
        x = keras.layers.MaxPooling2D(3, 1, padding="same", name="stem_max", **options)(x)
        return BlurPool(2, name="stem_pool", **options)(x)
    padding: str = toolkit.padding
    if padding == "symmetric":
        # Behind a rectifier a margin of zeros never wins, so it equals minus infinity; without one
        # (keras.applications' V2) the zeros are part of the network.
        x, padding = toolkit.pad(x, 1, name="stem_pool"), "valid"
    return keras.layers.MaxPooling2D(3, 2, padding=padding, name="stem_pool", **options)(x)


def _block(x: Any, architecture: Architecture, plan: BlockPlan, toolkit: blocks.Toolkit) -> Any:
    """One block. The last layer of a stage's last one, `stage<n>_block<m>_out`, is C<n>."""
    is_first = plan.stage == plan.index == 0
    options: dict[str, Any] = {}
    branch: Callable[..., Any] = blocks.basic_branch
    if architecture.block == "bottleneck":
        branch = blocks.bottleneck_branch
        options = {
            key: getattr(architecture, key)
            for key in ("stride_on", "expansion", "base_width", "cardinality")
        }

    def weighted_branch(x: Any) -> Any:
        x = branch(
            x,
            architecture.widths[plan.stage],
            stride=plan.stride,
            dilations=plan.dilations,
            blur=architecture.antialias and plan.subsamples,
            dropout=architecture.block_dropout,
            last_norm=not architecture.pre_activation,
            zero_start=architecture.zero_init_residual,
            toolkit=toolkit,
            name=plan.name,
            **options,
        )
        if architecture.attention == "se":
            ratio = architecture.se_ratio
            x = blocks.squeeze_excite(x, ratio=ratio, toolkit=toolkit, name=f"{plan.name}_se")
        elif architecture.attention == "eca":
            x = blocks.efficient_attention(x, toolkit=toolkit, name=f"{plan.name}_eca")
        if plan.drop_rate:
            x = blocks.drop_branch(x, plan.drop_rate, toolkit=toolkit, name=f"{plan.name}_drop")
        return x

    return blocks.residual(
        x,
        weighted_branch,
        shortcut=architecture.shortcut,
        projection=architecture.projection,
        stride=plan.stride,
        subsamples=plan.subsamples,
        pre_activation=architecture.pre_activation and not (is_first and architecture.stem_norm),
        activate=not architecture.pre_activation,
        norm_on_projection=architecture.norm_on_projection,
        toolkit=toolkit,
        name=plan.name,
    )


def _head(
    x: Any,
    include_top: bool,
    pooling: str | None,
    classes: int,
    activation: str | Callable[..., Any] | None,
    dropout: float,
    dtype: Any,
) -> Any:
    """Pooling, logits and probabilities; the last in float32 also under mixed precision."""
    if include_top or pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(dtype=dtype, name="avg_pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(dtype=dtype, name="max_pool")(x)
    if include_top:
        wide = _at_least_float32(dtype)
        if dropout:
            x = keras.layers.Dropout(dropout, dtype=dtype, name="dropout")(x)
        x = keras.layers.Dense(classes, dtype=wide, name="logits")(x)
        if activation is not None:
            x = keras.layers.Activation(activation, dtype=wide, name="predictions")(x)
    return x


def _at_least_float32(dtype: Any) -> str:
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    return "float64" if policy.compute_dtype == "float64" else "float32"


def _input(input_tensor: Any, input_shape: Any, dtype: Any) -> Any:
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "The networks are built for images (height, width, channels); call "
            "keras.config.set_image_data_format('channels_last'). Received: "
            f"image_data_format={keras.config.image_data_format()!r}"
        )
    if input_tensor is not None and not keras.backend.is_keras_tensor(input_tensor):
        raise ValueError(
            "Argument `input_tensor` must be a Keras tensor, e.g. keras.Input((224, 224, 3)). "
            f"Received: a {type(input_tensor).__name__}"
        )
    shape = tuple(input_tensor.shape[1:]) if input_tensor is not None else input_shape
    advice = "(height, width, channels), e.g. (224, 224, 3), with a height and width of at least 32"
    if (
        not isinstance(shape, tuple | list)
        or len(shape) != 3
        or not all(isinstance(n, int) or n is None for n in shape)
        or shape[2] is None
        or shape[2] < 1
        or any(n is not None and n < 32 for n in shape[:2])
    ):
        argument = "input_shape" if input_tensor is None else "input_tensor"
        raise ValueError(
            f"Argument `{argument}` must be {advice}, or None for a size that varies. "
            f"Received: shape {shape!r}"
        )
    if input_tensor is not None:
        if input_shape is not None and tuple(input_shape) != tuple(shape):
            raise ValueError(
                "Arguments `input_tensor` and `input_shape` must agree; leave `input_shape` out. "
                f"Received: a tensor of shape {shape}, input_shape={input_shape}"
            )
        return input_tensor
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    return keras.Input(tuple(shape), dtype=policy.variable_dtype, name="image")


def _check_head(
    include_top: Any, pooling: Any, classes: Any, class_names: Sequence[str] | None
) -> None:
    if not isinstance(include_top, bool):
        raise ValueError(
            f"Argument `include_top` must be True or False. Received: include_top={include_top!r}"
        )
    if pooling not in (None, "avg", "max"):
        raise ValueError(
            f"Argument `pooling` must be None, 'avg' or 'max'. Received: pooling={pooling!r}"
        )
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ValueError(
            f"Argument `classes` must be a positive integer. Received: classes={classes!r}"
        )
    if class_names is not None and (isinstance(class_names, str) or len(class_names) != classes):
        raise ValueError(
            "Argument `class_names` must hold one name per class. "
            f"Received: {class_names!r} for classes={classes}"
        )


def _check_weights(weights: Any) -> None:
    # Checked before anything is built: building takes seconds.
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise ValueError(
            "Argument `weights` must be None (random values), 'cifar10', 'imagenet', the path of a "
            f"file of weights, or what from_pretrained takes. Received: weights={weights!r}"
        )


@contextlib.contextmanager
def _deep_graphs() -> Iterator[None]:
    """Room for networks of thousands of layers.

    Keras walks a graph from its outputs by recursion, a frame or two per layer: ResNet-1202 has
    4,200 layers on its longest path and exceeds Python's default limit of 1,000 frames.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 40_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _builder(public_name: str, architecture: Architecture) -> Callable[..., ResidualNetwork]:
    """The public function of one row, with its real defaults in its signature."""

    def build(*args: Any, **kwargs: Any) -> ResidualNetwork:
        return _build(architecture, *args, **kwargs)

    Parameter = inspect.Parameter
    types = {f.name: f.type for f in dataclasses.fields(Architecture)} | {
        "shortcut": "Shortcut | str"
    }
    parameters = []
    for parameter in inspect.signature(_build).parameters.values():
        if parameter.name == "architecture":
            continue
        if parameter.kind is Parameter.VAR_KEYWORD:
            for key in _OVERRIDES:
                value = getattr(architecture, key)
                default = str(value) if isinstance(value, Shortcut) else value
                parameters.append(
                    Parameter(key, Parameter.KEYWORD_ONLY, default=default, annotation=types[key])
                )
        elif parameter.name in ("name", "classes"):
            default = getattr(architecture, parameter.name)
            annotation = "str | None" if parameter.name == "name" else "int"
            parameters.append(parameter.replace(default=default, annotation=annotation))
        else:
            parameters.append(parameter)
    build.__name__ = build.__qualname__ = public_name
    grouped = _GROUPED if architecture.cardinality > 1 else ""
    build.__doc__ = _DOC.format(
        name=architecture.name,
        source=architecture.source,
        size=architecture.input_size,
        note=grouped,
    )
    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation="ResidualNetwork"
    )
    return build


_GROUPED = """
Its 3x3 convolutions are grouped. TensorFlow has no gradient of those on a CPU; there Keras compiles
each with XLA, in training and inference, which works under every strategy but starts slowly and
trains slowly. Exported files run them as they are, in int8 too.
"""

_DOC = """Builds {name}: {source}.
{note}
Args:
    include_top: whether to end in the classifier (global average pooling, logits, activation).
    weights: None for random values, `"cifar10"` for the file that comes with this package (for
        some networks), `"imagenet"` for keras.applications' file of this network, or whatever
        `keras_resnet.load_weights` takes.
    input_tensor: a Keras tensor to build upon, instead of a new input.
    input_shape: `(height, width, channels)`, at least 32 pixels each way; None in place of a size
        leaves it open. Default `({size}, {size}, 3)`; with `include_top=False`, `(None, None, 3)`.
    pooling: with `include_top=False`: None for the feature map `(batch, h, w, channels)`,
        `"avg"` or `"max"` for `(batch, channels)`.
    classes: number of classes.
    classifier_activation: activation over the logits; None gives the logits.
    name: name of the model.
    sync_bn: take batch statistics over all replicas (TensorFlow backend).
    preprocessing: the `Preprocessing` to remember; default `x / 128 - 1`.
    class_names: names to remember, one per class.
    dtype: a Keras dtype policy, e.g. `"mixed_bfloat16"`; None for the global one.
    shortcut: the paper's option `"A"`, `"B"` or `"C"`, or `"none"` for a plain network.
    norm: `"batch"`, or `"group"` for group normalization (32 groups), which needs no statistics of
        the batch. TensorFlow Lite has no 8-bit form of it, so exports to int8 are refused.
    norm_momentum: decay of the moving statistics of batch normalization.
    norm_epsilon: addition to the variance in the normalization.
    zero_init_residual: start every block as the identity.
    block_dropout: rate of dropout inside the blocks, as in wide ResNets.
    stochastic_depth: rate at which the last block is skipped in training; it grows linearly from 0.
    dropout: rate of dropout in front of the classifier.
    output_stride: input size over the last feature map's; less than the network's own dilates
        instead of striding, for segmentation. Weights are the same for every stride.

Returns:
    A `ResidualNetwork`, a functional `keras.Model` from preprocessed pixels
    `(batch, height, width, channels)` to `(batch, classes)`.

Raises:
    ValueError: for an argument out of range, naming it and what would work.
"""

for _public_name, _registry_name in BUILDERS.items():
    globals()[_public_name] = _builder(_public_name, get_architecture(_registry_name))
