"""Names for strategies, and the same training on one replica and on several.

What has replicas runs in processes of its own: logical devices are fixed once TensorFlow has
started, and a second MirroredStrategy in one process can abort the collectives of the first.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet import Preprocessing, data, training
from keras_resnet.training import Recipe, resolve_strategy

HERE = Path(__file__).parent


def run_python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    process = subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    return process.stdout


def train_on_one_and_on_two(directory, dtype, steps, *changes, network="resnet20"):
    """What tests/strategy_process.py writes, of one replica and of two."""
    outcomes = []
    for i, strategy in enumerate(("default", "mirrored:2")):
        path = directory / f"{i}.npz"
        run_python("strategy_process.py", network, strategy, dtype, str(steps), str(path), *changes)
        with np.load(path) as arrays:
            outcomes.append(dict(arrays))
    return outcomes


def train_on_two_workers(directory, dtype, steps, *changes):
    """The same of two processes on this machine that train as one; what the chief writes."""
    ports = []
    sockets = [socket.socket() for _ in range(2)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
        ports.append(listener.getsockname()[1])
    for listener in sockets:
        listener.close()
    processes = []
    for index in range(2):
        config = {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": index},
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "strategy_process.py", "resnet20", "multiworker", dtype,
                 str(steps), str(directory / f"worker{index}.npz"), *changes],
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": json.dumps(config)},
                cwd=HERE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )  # fmt: skip
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-5000:]
    finally:
        for process in processes:
            process.kill()
    with np.load(directory / "worker0.npz") as arrays:
        return dict(arrays)


def distance(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(one)


def assert_validation_was_an_evaluation(outcome, rounding):
    """Validation in the last epoch, under the strategy, against evaluation after it, without."""
    loss, accuracy, correct, examples = outcome["after"]
    # An odd number of images, which two replicas cannot share evenly.
    assert examples == 77
    assert accuracy == correct / 77
    assert outcome["during"][1] == accuracy
    assert outcome["during"][0] == pytest.approx(loss, rel=rounding)


# Several replicas are one. These tests take a minute, and share nothing that two workers would
# both have to compute.


def test_two_replicas_follow_one_in_float64(tmp_path):
    # At the recipe's highest rate from the first step on.
    one, two = train_on_one_and_on_two(tmp_path, "float64", 20, "warmup_epochs=0")
    assert one["losses"].shape == two["losses"].shape == (20,)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-7, atol=0)
    assert distance(one["weights"], two["weights"]) <= 1e-7
    # The comparison is about something.
    assert abs(one["losses"][0] - one["losses"][-1]) > 0.1
    for outcome in (one, two):
        assert_validation_was_an_evaluation(outcome, rounding=1e-12)
    np.testing.assert_allclose(two["after"], one["after"], rtol=1e-6, atol=0)

    # And two processes are one, with the form of the loop that several machines take.
    workers = train_on_two_workers(tmp_path, "float64", 20, "warmup_epochs=0")
    np.testing.assert_allclose(workers["losses"], one["losses"], rtol=1e-7, atol=0)
    assert distance(one["weights"], workers["weights"]) <= 1e-7
    assert_validation_was_an_evaluation(workers, rounding=1e-12)


def test_the_first_step_of_two_replicas_is_that_of_one_in_float32(tmp_path):
    # The recipe as it is: its warm-up starts at a small rate. At the highest one the weights differ
    # by 3e-5 after the step, for the gradients of a ResNet-20 in float32 are good to 5e-4 only: so
    # much do they change when the same examples come in another order.
    one, two = train_on_one_and_on_two(tmp_path, "float32", 1)
    assert one["losses"].shape == two["losses"].shape == (1,)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5, atol=0)
    assert distance(one["weights"], two["weights"]) <= 1e-5
    for outcome in (one, two):
        assert_validation_was_an_evaluation(outcome, rounding=1e-6)


def test_a_network_with_grouped_convolutions_trains_on_two_replicas_as_on_one(tmp_path):
    """On a CPU their gradient exists compiled by XLA alone, which Keras sees to."""
    one, two = train_on_one_and_on_two(tmp_path, "float64", 3, "warmup_epochs=0", network="grouped")
    assert one["losses"].shape == two["losses"].shape == (3,)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-7, atol=0)
    assert distance(one["weights"], two["weights"]) <= 1e-7
    assert abs(one["losses"][0] - one["losses"][-1]) > 1e-3


SHARED_EVALUATION = """
import json
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
import keras
import numpy as np
from keras_resnet import Preprocessing, data, training

images = np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), np.uint8)
labels = np.arange(13) % 3
source = data.from_arrays((images, labels), (images, labels), "abc")

def build():
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=4)(image)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))

with training.resolve_strategy("mirrored:3").scope():
    model = build()
model.set_weights([np.random.default_rng(1).normal(size=w.shape) ** 2 for w in model.get_weights()])
alone = build()
alone.set_weights(model.get_weights())
logits = alone.predict(Preprocessing()(images), verbose=0).astype(np.float64)
terms = np.log(np.exp(logits).sum(-1)) - logits[np.arange(13), labels]
outcome = {"loss": terms.mean(), "correct": int((logits.argmax(-1) == labels).sum()), "found": []}
# The last batch has 13, 1, 4 and 1 examples: too few for every replica to get a share.
for batch_size in (16, 12, 9, 4):
    evaluation = training.evaluate(
        model, source, preprocessing=Preprocessing(), batch_size=batch_size, strategy="mirrored:3"
    )
    outcome["found"].append([evaluation.loss, evaluation.correct, evaluation.examples])
print(json.dumps(outcome))
"""


def test_a_batch_too_small_for_all_replicas_is_evaluated_too():
    outcome = json.loads(run_python("-c", SHARED_EVALUATION).splitlines()[-1])
    for loss, correct, examples in outcome["found"]:
        assert (correct, examples) == (outcome["correct"], 13)
        assert loss == pytest.approx(outcome["loss"], rel=1e-5)


# Names


@pytest.fixture(scope="session")
def mirrored():
    """The only MirroredStrategy of this process."""
    return resolve_strategy("mirrored:1")


def test_a_mirrored_strategy_is_had_by_its_name(mirrored):
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    assert mirrored.num_replicas_in_sync == 1


def test_a_strategy_passes_as_it_is(mirrored):
    assert resolve_strategy(mirrored) is mirrored
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    assert resolve_strategy(one_device) is one_device


def test_the_default_is_no_strategy_at_all():
    assert resolve_strategy("default") is tf.distribute.get_strategy()
    assert resolve_strategy("default").num_replicas_in_sync == 1


@pytest.mark.parametrize("name", ["auto", None])
def test_on_a_machine_without_several_gpus_auto_is_the_default(name, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if len(tf.config.list_logical_devices("GPU")) > 1:
        pytest.skip("there are several GPUs")
    assert resolve_strategy(name) is tf.distribute.get_strategy()


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"'mirrored:99' needs 99 devices; this machine has [1-9]"):
        resolve_strategy("mirrored:99")


def test_more_replicas_than_cpu_devices_are_refused():
    if tf.config.list_logical_devices("GPU"):
        pytest.skip("mirrored takes GPUs where there are some")
    with pytest.raises(ValueError, match=r"needs 5 devices; this machine has 1: .*CPU:0"):
        resolve_strategy("mirrored:5")


@pytest.mark.parametrize(
    "name",
    ["tpu", "", "mirrored:0", "mirrored:x", "mirrored:-1", "mirrored:1.5", "default:1", "Mirrored"],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name):
    with pytest.raises(
        ValueError, match=r"'auto', 'default', 'mirrored', .*'multiworker'"
    ) as raised:
        resolve_strategy(name)
    assert str(raised.value).endswith(f"Received: {name!r}")


# A strategy with variables of its own, in this process


def linear():
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    return keras.Model(image, keras.layers.Dense(2)(pooled))


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    labels = (images[..., 0].mean(axis=(1, 2)) > 127).astype(int)
    return data.from_arrays((images, labels), (images[:7], labels[:7]), ["dark", "light"])


def train(model, source, strategy):
    recipe = Recipe(epochs=2, batch_size=8)
    return training.fit(
        model, source, recipe, strategy, preprocessing=Preprocessing(), verbose=False
    )


def test_a_model_built_elsewhere_is_trained_under_a_strategy_and_gets_the_weights(mirrored, source):
    model, alone = linear(), linear()
    alone.set_weights(model.get_weights())
    result = train(model, source, mirrored)
    train(alone, source, "default")
    assert result.model is model
    for a, b in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_what_comes_out_is_free_of_the_strategy(mirrored, source):
    in_scope = []

    def build():
        in_scope.append(tf.distribute.get_strategy() is mirrored)
        return linear()

    result = train(build, source, mirrored)
    assert in_scope == [True]
    # Evaluated and trained on without the strategy.
    evaluation = training.evaluate(result.model, source, preprocessing=Preprocessing())
    assert result.history[-1]["val_loss"] == pytest.approx(evaluation.loss, rel=1e-6)
    assert train(result.model, source, "default").model is result.model
