"""What a user waits for: little beyond Keras itself."""

import re
import sys

import keras
from processes import run_python

import keras_resnet


def test_the_first_builder_costs_little_more_than_keras():
    """At most a twentieth of importing Keras, seen in one process: what is ours and what we add."""
    code = "import keras; import keras_resnet; keras_resnet.ResNet50"
    done = run_python("-X", "importtime", "-c", code)
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|( *)([\w.]+)", done.stderr)
    tops = {name: int(total) for _, total, indent, name in lines if len(indent) == 1}
    ours = sum(int(own) for own, _, _, name in lines if name.startswith("keras_resnet"))
    names = [name for *_, name in lines]
    added = set(names[names.index("keras") + 1 :])
    assert {name.split(".")[0] for name in added} - set(sys.stdlib_module_names) == {"keras_resnet"}
    assert ours <= 0.05 * tops["keras"]


def calls(build):
    """How many functions of Python it calls, which is most of its time and no other program's.

    Not those of a first time, which also imports.
    """
    build()
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        build()
    finally:
        sys.setprofile(None)
    return count


def test_building_takes_no_longer_than_that_of_keras_applications():
    """Counted; benchmarks/startup.py has the seconds."""
    theirs = calls(lambda: keras.applications.ResNet50(weights=None))
    assert calls(keras_resnet.ResNet50) <= theirs
