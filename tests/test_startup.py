"""What a user waits for: little beyond Keras itself."""

import gc
import re
import subprocess
import sys
import time

import keras
import numpy as np

import keras_resnet


def test_the_first_builder_costs_little_more_than_keras():
    """At most a twentieth of importing Keras, seen in one process: what is ours and what we add."""
    code = "import keras; import keras_resnet; keras_resnet.ResNet50"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|( *)([\w.]+)", done.stderr)
    tops = {name: int(total) for _, total, indent, name in lines if len(indent) == 1}
    ours = sum(int(own) for own, _, _, name in lines if name.startswith("keras_resnet"))
    names = [name for *_, name in lines]
    added = set(names[names.index("keras") + 1 :])
    assert {name.split(".")[0] for name in added} - set(sys.stdlib_module_names) == {"keras_resnet"}
    assert ours <= 0.05 * tops["keras"]


def test_building_takes_no_longer_than_that_of_keras_applications():
    """The fastest of alternating builds, since other processes only add; a tenth is for noise.

    Garbage is collected in between: else one of the two clears away what both have left.
    """

    def seconds(build):
        gc.collect()
        gc.disable()
        try:
            started = time.perf_counter()
            build()
            return time.perf_counter() - started
        finally:
            gc.enable()

    builders = (keras_resnet.ResNet50, lambda: keras.applications.ResNet50(weights=None))
    ours, theirs = np.array([[seconds(build) for build in builders] for _ in range(10)]).min(axis=0)
    assert ours <= 1.1 * theirs
