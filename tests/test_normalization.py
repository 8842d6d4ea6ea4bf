"""Our batch normalization beside Keras's: the same numbers, files and configuration.

What has replicas runs in processes of its own, as in test_strategies.py.
"""

import json
import socket

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import outcome, run_python, start_python
from toys import SMALL

import keras_resnet
from keras_resnet import export
from keras_resnet.blocks import Toolkit
from keras_resnet.export.inspection import read_graph
from keras_resnet.layers import BatchNormalization

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the kernel is TensorFlow's", allow_module_level=True)

Stock = keras.layers.BatchNormalization

# One rounding of what is computed in: float32 as the sums of many values leave it, and half a unit
# in the last of 8 and of 11 binary digits, either way.
ROUNDING = {"float32": 1e-5, "mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}


def with_weights(layer, shape, seed=0):
    """The layer, built, with weights that are not its start values."""
    rng = np.random.default_rng(seed)
    layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    return layer


def images_of(shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype("float32")


def passes(layer, images, *, wrap=lambda function: function, training=True, mask=None):
    """Outputs, gradients by the input and by the weights, and the statistics after one step."""
    weighting = tf.constant(np.random.default_rng(9).normal(size=images.shape), tf.float32)

    @wrap
    def step(images):
        with tf.GradientTape() as tape:
            x = tf.cast(images, layer.compute_dtype)
            tape.watch(x)
            outputs = layer(x, training=training, mask=mask)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weighting)
        weights = [variable.value for variable in layer.trainable_variables]
        return outputs, tape.gradient(loss, [x, *weights])

    outputs, (by_input, *by_weights) = step(tf.constant(images))
    assert outputs.dtype == layer.compute_dtype
    as_numbers = [tf.cast(t, tf.float64).numpy() for t in (outputs, by_input, *by_weights)]
    statistics = [np.float64(v.numpy()) for v in layer.non_trainable_variables]
    return {
        "outputs": as_numbers[0],
        "by_input": as_numbers[1],
        **{f"by_weight_{i}": gradient for i, gradient in enumerate(as_numbers[2:])},
        **{f"statistic_{i}": value for i, value in enumerate(statistics)},
    }


def assert_agree(ours, stock, rounding, gradient_terms=0.0):
    """Equal within a rounding of the largest value.

    The gradient by the input is a difference of terms that can be larger than itself:
    `gradient_terms`, in which it is rounded.
    """
    assert ours.keys() == stock.keys()
    for name, expected in stock.items():
        # Weights, their gradients and the statistics are float32 whatever is computed in.
        narrow = name in ("outputs", "by_input")
        scale = max(np.abs(expected).max(), gradient_terms if name == "by_input" else 0.0)
        error = np.abs(ours[name] - expected).max()
        assert error <= (rounding if narrow else 1e-5) * scale, name


def kernels(function, *arguments):
    """How often a compiled function calls the fused kernel."""
    graph = function.get_concrete_function(*arguments).graph
    return sum(op.type == "FusedBatchNormV3" for op in graph.get_operations())


def calls_the_kernel(layer, shape, dtype=None, **options):
    spec = tf.TensorSpec(shape, dtype or layer.compute_dtype)
    return kernels(tf.function(lambda x: layer(x, **options)), spec) == 1


# The same numbers


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)],
    ids=["eager", "graph", "xla"],
)
def test_a_training_step_is_that_of_the_stock_layer(dtype, wrap):
    shape = (16, 9, 7, 24)
    ours, stock = (
        passes(with_weights(cls(momentum=0.9, dtype=dtype), shape), images_of(shape), wrap=wrap)
        for cls in (BatchNormalization, Stock)
    )
    assert_agree(ours, stock, ROUNDING[dtype])
    assert np.abs(stock["by_input"]).max() > 1  # the comparison is about something


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(2, 5), *[st.integers(1, 5)] * 3),
    dtype=st.sampled_from(sorted(ROUNDING)),
    momentum=st.floats(0, 1),
    epsilon=st.sampled_from([1e-3, 1e-5]),
    center=st.booleans(),
    scale=st.booleans(),
)
def test_it_is_so_for_any_small_batch(shape, dtype, momentum, epsilon, center, scale):
    options = {"momentum": momentum, "epsilon": epsilon, "center": center, "scale": scale}
    images = images_of(shape)
    layers = [
        with_weights(cls(dtype=dtype, **options), shape) for cls in (BatchNormalization, Stock)
    ]
    ours, stock = (passes(layer, images) for layer in layers)
    # |weighting| * gamma / sqrt(variance + epsilon), at the most
    terms = 4 * 1.5 / np.sqrt(images.var(axis=(0, 1, 2)).min() + epsilon)
    assert_agree(ours, stock, ROUNDING[dtype], terms)


@pytest.mark.parametrize(("images", "size"), [(2, 1), (1, 2), (3, 1)])
def test_the_variance_is_not_that_of_a_sample(images, size):
    """The kernel's is: of two values, twice as large."""
    layer = BatchNormalization(momentum=0.0)
    values = images_of((images, size, size, 5))
    layer(values, training=True)
    expected = values.astype("float64").var(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.moving_variance.numpy(), expected, rtol=1e-5)


def test_one_value_has_a_variance_of_zero():
    layer = BatchNormalization(momentum=0.0)
    values = images_of((1, 1, 1, 5))
    outputs = layer(values, training=True)
    np.testing.assert_array_equal(layer.moving_variance.numpy(), np.zeros(5))
    np.testing.assert_array_equal(layer.moving_mean.numpy(), values[0, 0, 0])
    np.testing.assert_allclose(outputs, np.zeros((1, 1, 1, 5)), atol=1e-4)


def test_the_batch_may_be_of_any_size_when_the_step_is_compiled():
    def train(layer):
        step = tf.function(
            lambda x: layer(x, training=True), [tf.TensorSpec((None, None, None, 3), tf.float32)]
        )
        assert kernels(step) == (type(layer) is BatchNormalization)
        outputs = [step(images_of((n, size, size, 3), seed=n)) for n, size in ((2, 1), (5, 4))]
        return [*outputs, *layer.get_weights()]

    shape = (None, None, None, 3)
    ours, stock = (
        train(with_weights(cls(momentum=0.5), shape)) for cls in (BatchNormalization, Stock)
    )
    for one, other in zip(ours, stock, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_network_of_many_is_that_of_stock_layers():
    """Its gradients are not compared: a rounding in front of a rectifier's kink changes them."""
    keras.utils.set_random_seed(0)
    network = keras_resnet.ResNet20()
    twin = in_stock_layers(network)
    images = images_of((8, 32, 32, 3))
    ours, stock = network(images, training=True), twin(images, training=True)
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-6)
    for one, other in zip(network.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def in_stock_layers(network):
    """The same network, of Keras's own layer, with the same weights."""

    def stock(layer):
        cls = Stock if type(layer) is BatchNormalization else type(layer)
        return cls.from_config(layer.get_config())

    twin = keras.models.clone_model(network, clone_function=stock)
    assert not any(type(layer) is BatchNormalization for layer in twin.layers)
    twin.set_weights(network.get_weights())
    return twin


# Where the kernel is called, and where Keras's own code


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("axis", [-1, 3])
@pytest.mark.parametrize("synchronized", [False, True])
def test_training_on_images_calls_the_kernel(dtype, axis, synchronized):
    layer = BatchNormalization(axis=axis, dtype=dtype, synchronized=synchronized)
    assert calls_the_kernel(layer, (4, 5, 6, 7), training=True)


@pytest.mark.parametrize("training", [False, None])
def test_inference_is_the_stock_layers(training):
    shape = (4, 5, 6, 7)
    layer = with_weights(BatchNormalization(), shape)
    assert not calls_the_kernel(layer, shape, training=training)
    ours = passes(layer, images_of(shape), training=training)
    stock = passes(with_weights(Stock(), shape), images_of(shape), training=training)
    for name, expected in stock.items():
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)


def test_a_frozen_layer_infers_while_the_others_train():
    shape = (4, 5, 6, 7)
    layer = with_weights(BatchNormalization(), shape)
    inferred = layer(images_of(shape), training=False)
    before = layer.get_weights()
    layer.trainable = False
    assert not calls_the_kernel(layer, shape, training=True)
    np.testing.assert_array_equal(layer(images_of(shape), training=True), inferred)
    np.testing.assert_array_equal(layer.get_weights(), before)


STOCK_CASES = {
    "float64": ({"dtype": "float64"}, (4, 5, 6, 7)),
    "other axis": ({"axis": 1}, (4, 5, 6, 7)),
    "vectors": ({}, (16, 7)),
    "sequences": ({}, (4, 5, 7)),
    "volumes": ({}, (4, 3, 2, 5, 7)),
    "renormalization": ({"renorm": True}, (4, 5, 6, 7)),
}


@pytest.mark.parametrize("case", STOCK_CASES)
def test_what_the_kernel_cannot_do_is_the_stock_layers(case):
    options, shape = STOCK_CASES[case]
    layer = with_weights(BatchNormalization(**options), shape)
    ours = passes(layer, images_of(shape))
    stock = passes(with_weights(Stock(**options), shape), images_of(shape))
    assert not calls_the_kernel(layer, shape, training=True)
    for name, expected in stock.items():
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)


def test_a_mask_is_heeded():
    shape = (4, 5, 6, 7)
    mask = tf.constant(np.random.default_rng(1).random(shape[:-1]) < 0.5)
    ours, stock, unmasked = (
        passes(with_weights(cls(), shape), images_of(shape), mask=given)
        for cls, given in ((BatchNormalization, mask), (Stock, mask), (Stock, None))
    )
    for name, expected in stock.items():
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)
    assert np.abs(ours["statistic_0"] - unmasked["statistic_0"]).max() > 1e-4


def test_an_input_that_is_not_cast_is_rounded_once_as_in_the_stock_layer():
    shape = (4, 5, 6, 7)
    images = tf.cast(images_of(shape), "bfloat16")
    ours, stock = (
        with_weights(cls(autocast=False), shape)(images, training=True)
        for cls in (BatchNormalization, Stock)
    )
    assert ours.dtype == stock.dtype == "float32"
    np.testing.assert_array_equal(ours, stock)


JAX = """
import sys

sys.modules["tensorflow"] = None  # there is none
import keras
import numpy as np
from keras_resnet.layers import BatchNormalization

assert keras.backend.backend() == "jax"
images = np.random.default_rng(0).normal(1, 2, (4, 5, 6, 7)).astype("float32")
ours, stock = BatchNormalization(), keras.layers.BatchNormalization()
for training in (True, False):
    np.testing.assert_array_equal(ours(images, training=training), stock(images, training=training))
for one, other in zip(ours.get_weights(), stock.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)
assert np.abs(ours.moving_mean).max() > 0
"""


def test_on_jax_it_is_the_stock_layer():
    pytest.importorskip("jax")
    run_python(JAX, KERAS_BACKEND="jax")


# The same files and configuration


def test_the_configuration_is_the_stock_layers():
    options = {"momentum": 0.8, "epsilon": 1e-4, "center": False, "synchronized": True, "name": "n"}
    ours, stock = BatchNormalization(**options), Stock(**options)
    assert ours.get_config() == stock.get_config()
    assert type(Stock.from_config(ours.get_config())) is Stock
    again = BatchNormalization.from_config(stock.get_config())
    assert type(again) is BatchNormalization
    assert again.get_config() == stock.get_config()


def test_layers_without_a_name_are_called_alike():
    keras.backend.clear_session()
    ours = [BatchNormalization().name for _ in range(2)]
    keras.backend.clear_session()
    assert ours == [Stock().name for _ in range(2)]


@pytest.mark.parametrize("there", [True, False], ids=["from stock", "into stock"])
def test_a_weights_file_is_that_of_stock_layers(tmp_path, there):
    network = keras_resnet.ResNet8(input_shape=(32, 32, 3))
    for weight in network.weights:
        weight.assign(np.random.default_rng(len(weight.path)).uniform(0.5, 1.5, weight.shape))
    twin = in_stock_layers(keras_resnet.ResNet8(input_shape=(32, 32, 3)))
    giver, taker = (twin, network) if there else (network, twin)
    giver.save_weights(tmp_path / "network.weights.h5")
    before = giver.get_weights()
    assert any(np.any(a != b) for a, b in zip(before, taker.get_weights(), strict=True))
    taker.load_weights(tmp_path / "network.weights.h5")
    for one, other in zip(before, taker.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_saved_network_comes_back_with_our_layers(tmp_path):
    network = keras_resnet.ResNet8(input_shape=(32, 32, 3))
    network.save(tmp_path / "network.keras")
    again = keras_resnet.load_model(tmp_path / "network.keras")
    kinds = [type(layer) for layer in again.layers if isinstance(layer, Stock)]
    assert kinds == [BatchNormalization] * len(kinds)
    assert kinds
    images = images_of((2, 32, 32, 3))
    np.testing.assert_array_equal(again(images), network(images))


def test_the_blocks_are_made_of_it():
    image = keras.Input((8, 8, 4))
    model = keras.Model(image, Toolkit(norm_momentum=0.7, norm_epsilon=1e-4).norm(image, name="n"))
    norm = model.get_layer("n")
    assert type(norm) is BatchNormalization
    assert (norm.momentum, norm.epsilon, norm.synchronized) == (0.7, 1e-4, False)


def test_it_folds_into_convolutions_when_converted(tmp_path):
    network = keras_resnet.create_model(SMALL)
    assert sum(type(layer) is BatchNormalization for layer in network.layers) == 7
    bundle = export.to_tflite(network, tmp_path / "bundle", "float32")
    kinds = [operator.name for operator in read_graph(bundle.model_path).operators]
    assert kinds.count("CONV_2D") == 7
    # Three sums of blocks, and at most two to make network input from pixels.
    arithmetic = {"ADD", "SUB", "MUL", "DIV", "RSQRT", "SQUARED_DIFFERENCE"}
    assert sum(kind in arithmetic for kind in kinds) <= 3 + 2


# The same under strategies

REPLICAS = """
import json
import sys

import numpy as np
import tensorflow as tf

strategy_name = sys.argv[1]
if strategy_name == "mirrored":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    mine = [0, 1]
else:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    mine = [strategy.cluster_resolver.task_id]

import keras
from keras_resnet.layers import BatchNormalization

SHAPE = (4, 5, 6, 7)
rng = np.random.default_rng(0)
images = rng.normal(1, 2, (2, *SHAPE)).astype("float32")
weighting = rng.normal(size=(2, *SHAPE)).astype("float32")
values = [rng.uniform(0.5, 1.5, 7) for _ in range(4)]


def per_replica(array):
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(array[context.replica_id_in_sync_group])
    )


def local(value):
    here = strategy.experimental_local_results(value)
    return [tf.cast(v, tf.float64).numpy().tolist() for v in here]


def passes(cls, dtype, synchronized):
    with strategy.scope():
        layer = cls(momentum=0.9, dtype=dtype, synchronized=synchronized)
        layer.build(SHAPE)
        layer.set_weights(values)

    def replica(x, w):
        with tf.GradientTape() as tape:
            x = tf.cast(x, layer.compute_dtype)
            tape.watch(x)
            outputs = layer(x, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * w)
        weights = [tf.convert_to_tensor(v) for v in layer.trainable_variables]
        gradients = tape.gradient(loss, [x, *layer.trainable_variables])
        statistics = [tf.identity(tf.convert_to_tensor(v)) for v in layer.non_trainable_variables]
        return [outputs, *gradients, *statistics]

    step = tf.function(lambda x, w: strategy.run(replica, (x, w)))
    arguments = per_replica(images), per_replica(weighting)
    graph = step.get_concrete_function(*arguments).graph
    fused = sum(op.type == "FusedBatchNormV3" for op in graph.get_operations())
    return fused, [local(value) for value in step(*arguments)]


found = {}
for dtype in ("float32", "mixed_bfloat16", "mixed_float16"):
    for synchronized in (False, True):
        key = f"{dtype} {'synchronized' if synchronized else 'apart'}"
        found[key] = [passes(cls, dtype, synchronized)
                      for cls in (BatchNormalization, keras.layers.BatchNormalization)]
print(json.dumps({"mine": mine, "found": found}))
"""

NAMES = ("outputs", "by_input", "by_weight_0", "by_weight_1", "statistic_0", "statistic_1")


def assert_replicas_agree(report, replicas):
    """Every replica of ours with the same one of the stock layer."""
    assert len(report["found"]) == 6
    for case, ((fused, ours), (stock_fused, stock)) in report["found"].items():
        dtype, kind = case.split()
        # Two replicas' statistics need their sums, which the kernel keeps to itself.
        assert fused == (0 if kind == "synchronized" else replicas), case
        assert stock_fused == 0
        for replica in range(replicas):
            ours_here, stock_here = (
                {name: np.array(value[replica]) for name, value in zip(NAMES, values, strict=True)}
                for values in (ours, stock)
            )
            assert_agree(ours_here, stock_here, ROUNDING[dtype])


def test_under_a_mirrored_strategy_every_replica_agrees_with_the_stock_layer():
    report = json.loads(run_python(REPLICAS, "mirrored").stdout.splitlines()[-1])
    assert report["mine"] == [0, 1]
    assert_replicas_agree(report, replicas=2)
    # Replicas that are not synchronized have statistics of their own.
    mean = np.array(report["found"]["float32 apart"][0][1][4])
    assert np.abs(mean[0] - mean[1]).max() > 1e-3
    mean = np.array(report["found"]["float32 synchronized"][0][1][4])
    np.testing.assert_array_equal(mean[0], mean[1])


def test_under_several_workers_every_one_agrees_with_the_stock_layer():
    sockets = [socket.socket() for _ in range(2)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(start_python(REPLICAS, "workers", TF_CONFIG=json.dumps(task)))
    try:
        reports = [json.loads(outcome(process).stdout.splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [report["mine"] for report in reports] == [[0], [1]]
    for report in reports:
        assert_replicas_agree(report, replicas=1)
