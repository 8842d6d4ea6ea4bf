"""What the subcommands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXIT_FAILED = 1

DATA_HELP = "digits, folder:PATH or tfds:NAME"

# Adds a subcommand: its name, what runs it, what it does, and the arguments of an example.
Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def fail(message: str) -> int:
    """Says in one line why the command has failed, and gives its exit status."""
    print(f"keras-resnet: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_FAILED


def count(text: str) -> int:
    """An argument that is 0 or a positive integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive integer: {text}")
    return int(text)


def positive(text: str) -> int:
    """An argument that is a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer: {text}")
    return int(text)


MODEL_HELP = "run directory, .keras file of ours, or a network's name with --weights"
WEIGHTS_HELP = "of a network by its name: a file, or a name such as imagenet"


def load(source: str, weights: str | None = None) -> tuple[Any, Any, Callable[[], Any] | None]:
    """Model, preprocessing and a function that loads the run's data, if it is a run.

    Args:
        source: a run directory, a `.keras` file, or with `weights` the name of a network.
        weights: see `keras_resnet.load_weights`.
    """
    from keras_resnet import training
    from keras_resnet.models import create_model, load_model
    from keras_resnet.preprocessing import Preprocessing

    if weights is None and Path(source).is_dir():
        run = training.load_run(source)
        return run.model, run.preprocessing, run.load_data
    model = load_model(source) if weights is None else create_model(source, weights=weights)
    return model, Preprocessing.from_model(model), None


def print_bad_images(source: Any) -> None:
    """Names the files that were left out."""
    if source.bad_images:
        print(f"left out {len(source.bad_images)} files that are no images:", file=sys.stderr)
        for path in source.bad_images:
            print(f"  {path}", file=sys.stderr)
