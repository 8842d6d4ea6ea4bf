"""Names for strategies, clusters in the environment, and one training on several replicas.

What has replicas runs in processes of its own: logical devices are fixed once TensorFlow has
started, and a second MirroredStrategy in one process can abort the collectives of the first.
"""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import strategy_process
import tensorflow as tf

from keras_resnet import Preprocessing, data, training
from keras_resnet.training import Recipe, resolve_strategy
from keras_resnet.training.strategies import AddressError, is_lost_peer

# Several replicas are one. Each strategy runs once, for all the tests of it; strategy_process.py
# says what the parts are.

PARTS = {
    "default": ("many_steps", "first_step", "grouped", "evaluate", "options", "accumulated"),
    "mirrored:2": (
        *("many_steps", "first_step", "grouped", "own_statistics", "evaluate"),
        *("options", "accumulated", "resumed"),
    ),
    "mirrored:3": ("evaluate", "frozen"),
    "multiworker": (
        *("many_steps", "first_step", "own_statistics", "evaluate"),
        *("options", "accumulated", "resumed"),
    ),
}


# Two tasks that srun has started on one node.
SLURM_TASKS = [
    {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }
    for rank in range(2)
]


def run_together(command, environments):
    """One process per environment; all must succeed."""
    processes = [
        subprocess.Popen(
            command,
            env=without_cluster(os.environ) | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-5000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def without_cluster(environment):
    return {k: v for k, v in environment.items() if k != "TF_CONFIG" and not k.startswith("SLURM_")}


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory):
    """What a strategy gave, by its name: a dictionary of arrays, named PART/KEY."""
    directory = tmp_path_factory.mktemp("strategies")
    outcomes = {}

    def outcome_of(strategy):
        if strategy == "default" and strategy not in outcomes:  # no process of its own
            alone = tf.distribute.get_strategy()
            outcomes[strategy] = strategy_process.outcome(alone, PARTS[strategy])
        if strategy not in outcomes:
            path = directory / f"{strategy.replace(':', '-')}.npz"
            several = SLURM_TASKS if strategy == "multiworker" else [{}]
            script = [sys.executable, strategy_process.__file__, strategy, str(path)]
            run_together([*script, *PARTS[strategy]], several)
            with np.load(path) as arrays:
                outcomes[strategy] = dict(arrays)
        return outcomes[strategy]

    return outcome_of


def assert_same_training(one, several, part, steps, accuracy):
    losses = one[f"{part}/losses"]
    assert several[f"{part}/losses"].shape == losses.shape == (steps,)
    np.testing.assert_allclose(several[f"{part}/losses"], losses, rtol=accuracy, atol=0)
    weights = one[f"{part}/weights"]
    difference = np.linalg.norm(several[f"{part}/weights"] - weights) / np.linalg.norm(weights)
    assert difference <= accuracy
    np.testing.assert_allclose(
        several[f"{part}/during"], one[f"{part}/during"], rtol=accuracy, atol=0
    )


@pytest.mark.parametrize("strategy", ["mirrored:2", "multiworker"])
def test_several_replicas_follow_one_in_float64(strategy, outcome_of):
    one = outcome_of("default")
    # The comparison is about something.
    assert abs(one["many_steps/losses"][0] - one["many_steps/losses"][-1]) > 0.1
    assert_same_training(one, outcome_of(strategy), "many_steps", 30, 1e-7)


@pytest.mark.parametrize("strategy", ["mirrored:2", "multiworker"])
def test_the_first_step_of_several_replicas_is_that_of_one_in_float32(strategy, outcome_of):
    assert_same_training(outcome_of("default"), outcome_of(strategy), "first_step", 1, 1e-5)


@pytest.mark.parametrize("strategy", ["mirrored:2", "multiworker"])
def test_what_a_recipe_can_ask_for_is_the_same_on_several_replicas(strategy, outcome_of):
    """Clipping, averages, early stopping, weights of classes, precise statistics."""
    assert_same_training(outcome_of("default"), outcome_of(strategy), "options", 4, 1e-9)


@pytest.mark.parametrize("strategy", ["mirrored:2", "multiworker"])
def test_micro_batches_on_two_replicas_are_those_on_one(strategy, outcome_of):
    assert_same_training(outcome_of("default"), outcome_of(strategy), "accumulated", 4, 1e-9)


def test_frozen_weights_do_not_move_on_three_replicas(outcome_of):
    """A mean of three equal numbers may be another one."""
    moved = {path.split("/")[0] for path in outcome_of("mirrored:3")["frozen/moved"]}
    assert moved == {"logits"}


@pytest.mark.parametrize("strategy", ["mirrored:2", "multiworker"])
def test_a_training_on_two_replicas_goes_on_as_if_nothing_had_happened(strategy, outcome_of):
    """With the statistics of all replicas in the averages of the weights, too."""
    outcome = outcome_of(strategy)
    np.testing.assert_allclose(outcome["resumed/torn"], outcome["resumed/whole"], rtol=1e-9)


def test_a_network_with_grouped_convolutions_trains_on_two_replicas_as_on_one(outcome_of):
    """On a CPU their gradient exists compiled by XLA alone, which Keras sees to."""
    one = outcome_of("default")
    assert abs(one["grouped/losses"][0] - one["grouped/losses"][-1]) > 1e-3
    assert_same_training(one, outcome_of("mirrored:2"), "grouped", 3, 1e-7)


@pytest.mark.parametrize("strategy", ["mirrored:2", "multiworker"])
def test_what_was_validated_on_two_replicas_is_what_comes_out(strategy, outcome_of):
    """Each has had its own statistics, which were brought together before."""
    outcome = outcome_of(strategy)
    np.testing.assert_allclose(
        outcome["own_statistics/during"], outcome["own_statistics/after"], rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("strategy", ["default", "mirrored:2", "mirrored:3", "multiworker"])
def test_each_example_is_evaluated_once_on_any_number_of_replicas(strategy, outcome_of):
    """Whether the batch is larger than the test split, leaves a rest, or is a single example."""
    one = outcome_of("default")
    confusion = one["evaluate/confusion32"]
    assert confusion.sum() == 25
    several = outcome_of(strategy)
    for batch_size in (32, 16, 4, 1):
        np.testing.assert_array_equal(several[f"evaluate/confusion{batch_size}"], confusion)
        counts = several[f"evaluate/counts{batch_size}"]
        np.testing.assert_array_equal(counts, [np.trace(confusion), 25])
        loss = several[f"evaluate/loss{batch_size}"]
        np.testing.assert_allclose(loss, one["evaluate/loss32"], rtol=1e-12)


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
def test_on_a_machine_without_several_gpus_auto_is_the_default(name, environment):
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


# Clusters in the environment


@pytest.fixture
def environment(monkeypatch):
    """Sets environment variables, where no cluster was before; without GPUs."""
    for name in set(os.environ) - set(without_cluster(os.environ)):
        monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def joined(monkeypatch):
    """The resolvers of the clusters that were joined: really joining one takes a fresh process."""
    resolvers = []
    monkeypatch.setattr(
        tf.distribute,
        "MultiWorkerMirroredStrategy",
        lambda cluster_resolver: resolvers.append(cluster_resolver),
    )
    return resolvers


def tf_config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("cluster", "kind", "workers"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", {"worker": ["a:1", "b:1"]}),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "chief", {"chief": ["a:1"], "worker": ["b:1"]}),
        # TensorFlow would wait for the parameter server.
        ({"worker": ["a:1", "b:1"], "ps": ["c:1"]}, "worker", {"worker": ["a:1", "b:1"]}),
    ],
)
@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_cluster_in_tf_config_is_joined(name, cluster, kind, workers, environment, joined):
    environment(TF_CONFIG=tf_config(cluster, kind))
    resolve_strategy(name)
    (resolver,) = joined
    assert resolver.cluster_spec().as_dict() == workers
    assert (resolver.task_type, resolver.task_id) == (kind, 0)


def test_tf_config_comes_before_slurm(environment, joined):
    environment(TF_CONFIG=tf_config({"worker": ["a:1", "b:1"]}, index=1), **SLURM_TASKS[0])
    resolve_strategy()
    assert joined[0].cluster_spec().as_dict() == {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("cluster", "kind"), [({"worker": ["a:1"]}, "worker"), ({"chief": ["a:1"]}, "chief")]
)
def test_a_single_worker_in_tf_config_trains_as_without_it(cluster, kind, environment, joined):
    """As an operator for Kubernetes starts a job with one replica."""
    environment(TF_CONFIG=tf_config({**cluster, "ps": ["b:1"]}, kind))
    assert resolve_strategy() is tf.distribute.get_strategy()
    assert joined == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'cluster': {}}", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "a `cluster` without workers"),
        ('{"cluster": ["a:1"]}', "a `cluster` without workers"),
        (tf_config({"worker": []}), "a `cluster` without workers"),
        (tf_config({"ps": ["a:1"]}, "ps"), "a `cluster` without workers"),
        (tf_config({"worker": "a:1"}), "no list of addresses for 'worker'"),
        (tf_config({"worker": ["a:1", 7]}), "no list of addresses for 'worker'"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "no `task` with `type` and `index`"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}', "no `task` with"),
        (tf_config({"worker": ["a:1", "b:1"]}, index=2), "task worker 2 of a cluster with 2"),
        (tf_config({"worker": ["a:1", "b:1"]}, index=-1), "task worker -1 of a cluster with 2"),
        (tf_config({"worker": ["a:1", "b:1"]}, "chief"), "task chief 0 of a cluster with 0"),
        (tf_config({"worker": ["a:1"], "ps": ["b:1"]}, "ps"), "a task 'ps', for which"),
        (tf_config({"worker": ["a:1"]}, "evaluator"), "a task 'evaluator', for which"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_damaged_tf_config_is_refused_with_what_would_have_worked(
    name, text, reason, environment, joined
):
    environment(TF_CONFIG=text)
    with pytest.raises(ValueError, match="environment variable TF_CONFIG") as raised:
        resolve_strategy(name)
    message = str(raised.value)
    assert '"task": {"type": "worker", "index": 0}' in message
    assert f"Received: {reason}" in message
    assert message.endswith(text)
    assert joined == []


def test_who_names_a_strategy_gets_it_whatever_the_environment_says(environment):
    environment(TF_CONFIG="{")
    assert resolve_strategy("default") is tf.distribute.get_strategy()


def test_several_workers_that_do_not_know_of_each_other_are_refused(environment):
    """TensorFlow would train alone in each of them."""
    with pytest.raises(ValueError, match=r"needs a cluster: set TF_CONFIG.*--workers N"):
        resolve_strategy("multiworker")


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"},  # the shell of salloc
        # A batch script, which srun has not started
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**SLURM_TASKS[0], "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
    ],
)
def test_an_allocation_without_tasks_is_no_cluster(variables, environment, joined):
    environment(**variables)
    assert resolve_strategy() is tf.distribute.get_strategy()
    assert joined == []


def test_slurms_ranks_are_counted_over_the_nodes_in_its_order(environment, joined):
    """TensorFlow sorts them as words: n10 before n9."""
    environment(
        SLURM_JOB_ID="1000",
        SLURM_STEP_NUM_TASKS="5",
        SLURM_STEP_NODELIST="n[9-10],m1",
        SLURM_STEP_TASKS_PER_NODE="2(x2),1",
        SLURM_PROCID="3",
        SLURM_LOCALID="1",
    )
    resolve_strategy()
    (resolver,) = joined
    workers = resolver.cluster_spec().as_dict()["worker"]
    hosts, ports = zip(*(worker.split(":") for worker in workers), strict=True)
    assert hosts == ("n9", "n9", "n10", "n10", "m1")
    first = int(ports[0])
    assert [int(port) - first for port in ports] == [0, 1, 0, 1, 0]
    assert 1024 < first < 32768 - 64
    assert (resolver.task_type, resolver.task_id) == ("worker", 3)
    assert resolver.num_accelerators() == {"GPU": 0}

    # Another job on the same node does not meet it.
    environment(SLURM_JOB_ID="1001")
    resolve_strategy()
    assert abs(int(joined[1].cluster_spec().task_address("worker", 0).split(":")[1]) - first) >= 64


@pytest.mark.parametrize(
    ("variables", "gpus", "taken"),
    [
        ({}, "abcd", "cd"),  # all tasks see all
        ({}, "a", None),  # each sees its own
        ({"SLURM_GPUS_PER_TASK": "2"}, "ab", None),
        ({}, "", None),
    ],
)
def test_the_tasks_of_a_node_share_its_gpus(
    variables, gpus, taken, environment, joined, monkeypatch
):
    environment(**SLURM_TASKS[1], **variables)
    chosen = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: chosen.append("".join(devices))
    )
    resolve_strategy()
    assert chosen == ([] if taken is None else [taken])


# Workers that are lost


def test_a_port_that_is_taken_is_named_and_worth_another_start(environment, monkeypatch):
    def fail(cluster_resolver):
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    environment(TF_CONFIG=tf_config({"worker": ["a:1", "b:77"]}, index=1))
    with pytest.raises(AddressError, match="Worker 1 cannot listen on its address, b:77") as raised:
        resolve_strategy()
    assert is_lost_peer(raised.value)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        # What TensorFlow 2.21 said when the other worker was killed, had exited, was stopped.
        (
            tf.errors.UnavailableError(
                None,
                None,
                "Graph execution error:\nCollective ops is aborted by: recvmsg:Connection reset "
                "by peer\nAdditional GRPC error information from remote target "
                "/job:worker/replica:0/task:1 while calling /tensorflow.WorkerService/RecvBuf",
            ),
            True,
        ),
        (
            tf.errors.UnavailableError(
                None,
                None,
                "Collective ops is aborted by: Error reported from /job:worker/task:1: The "
                "following tasks are unhealthy (stopped sending heartbeats)",
            ),
            True,
        ),
        (
            tf.errors.DeadlineExceededError(
                None, None, "Deadline Exceeded\n\nRPC: /tensorflow.CoordinationService/Heartbeat"
            ),
            True,
        ),
        (tf.errors.UnavailableError(None, None, "gs://bucket/shard: 503"), False),
        (tf.errors.ResourceExhaustedError(None, None, "Collective ops is aborted by: OOM"), False),
        (tf.errors.InvalidArgumentError(None, None, "Collective ops is aborted by: shape"), False),
        (OSError("No space left on device"), False),
        (ValueError("collective ops is aborted"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_an_error_says_whether_another_worker_is_gone(error, lost):
    assert is_lost_peer(error) is lost


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
