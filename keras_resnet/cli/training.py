"""Subcommands that train networks and look at trainings."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from keras_resnet import architecture
from keras_resnet.cli.common import (
    DATA_HELP,
    MODEL_HELP,
    WEIGHTS_HELP,
    Add,
    count,
    fail,
    load,
    positive,
    print_bad_images,
)
from keras_resnet.quiet import import_tensorflow

# The last one counts: what is started by `_train_in_group` is a worker, and starts none itself.
_AS_WORKER = ("--workers", "0")

# What a run does not remember, since it may go on elsewhere, and what a person will not want lost.
_NOT_REMEMBERED = ("--workers", "--strategy", "--checkpoint-every", "--keep-checkpoints", "--cache")


def add_commands(add: Add) -> None:
    """Adds train, evaluate, preview and compare."""
    _add_train(add)
    _add_evaluate(add)
    _add_preview(add)
    _add_compare(add)


def _add_train(add: Add) -> None:
    train = add(
        "train",
        _train,
        "train a network and write a run directory",
        "--model resnet20 --data folder:photographs --recipe small --out runs/photographs\n"
        "  keras-resnet train --resume --out runs/photographs",
    )
    what = train.add_argument_group("what to train")
    what.add_argument("--model", metavar="NAME", help="see keras-resnet list")
    what.add_argument("--data", metavar="DATA", help=DATA_HELP)
    what.add_argument("--out", required=True, metavar="RUN", help="directory to write")
    what.add_argument("--input-size", type=positive, metavar="N", help="pixels; default: its own")
    what.add_argument(
        "--weights",
        metavar="SOURCE",
        help="start from these, with a new classifier where the classes are others: a file, or "
        "a name such as imagenet or timm/resnet50.a1_in1k",
    )
    what.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")
    what.add_argument(
        "--cache",
        metavar="WHERE",
        default="memory",
        help="where images in the network's size are kept after the first epoch: memory (default), "
        "disk:DIRECTORY or none",
    )
    how = train.add_argument_group("how to train")
    how.add_argument("--recipe", metavar="NAME", help="default: small; see the README for all")
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe, e.g. epochs=5; may be repeated",
    )
    how.add_argument("--seed", type=int, help="default: 0")
    how.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        help="what the layers compute in; weights, head and loss stay float32; default: float32",
    )
    how.add_argument(
        "--class-weights",
        metavar="WEIGHTS",
        help="factors on the loss: balanced, or e.g. cat=2,dog=0.5",
    )
    how.add_argument(
        "--precise-bn",
        action="store_true",
        help="recompute the statistics of batch normalization over training data at the end",
    )
    where = train.add_argument_group("where to train")
    where.add_argument(
        "--strategy",
        default="auto",
        help="auto (default): default on one device, mirrored on several GPUs, multiworker if "
        "TF_CONFIG or Slurm say so; or default, mirrored[:N], multiworker",
    )
    where.add_argument(
        "--workers", type=count, metavar="N", help="start N processes here that train as one"
    )
    where.add_argument(
        "--max-restarts",
        type=count,
        default=3,
        metavar="N",
        help="with --workers: how often the group starts again after one was lost; default: 3",
    )
    where.add_argument(
        "--accumulate",
        type=positive,
        metavar="N",
        help="split each batch into N micro-batches, where memory is short; default: 1",
    )
    where.add_argument(
        "--sync-bn", action="store_true", help="batch normalization over all replicas together"
    )
    life = train.add_argument_group("interruptions, and looking at it")
    life.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, or start if there is none; then --model, "
        "--data and --recipe may be left out",
    )
    life.add_argument(
        "--checkpoint-every",
        default="10m",
        metavar="STEPS|TIME",
        help="e.g. 500, 90s, 10m (default), 2h",
    )
    life.add_argument(
        "--keep-checkpoints", type=positive, default=3, metavar="N", help="default: 3"
    )
    life.add_argument("--force", action="store_true", help="overwrite the run that is there")
    life.add_argument(
        "--profile",
        type=_span,
        metavar="FIRST:LAST",
        help="profile these steps, e.g. 10:20, for TensorBoard",
    )


def _add_evaluate(add: Add) -> None:
    evaluate = add("evaluate", _evaluate, "measure a trained network on test images", "runs/digits")
    evaluate.add_argument("model", nargs="?", metavar="RUN", help=MODEL_HELP)
    evaluate.add_argument("--model", dest="name", metavar="NAME", help="instead of RUN")
    evaluate.add_argument("--weights", metavar="SOURCE", help=WEIGHTS_HELP)
    evaluate.add_argument("--data", metavar="DATA", help=f"{DATA_HELP}; default: the run's")
    evaluate.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")
    evaluate.add_argument(
        "--per-class", action="store_true", help="precision and recall by class, and confusions"
    )


def _add_preview(add: Add) -> None:
    preview = add(
        "preview",
        _preview,
        "draw what the network will see in training",
        "--data digits --recipe digits --out preview.png",
    )
    preview.add_argument("--data", required=True, metavar="DATA", help=DATA_HELP)
    preview.add_argument("--recipe", default="small", metavar="NAME", help="default: small")
    preview.add_argument("--out", required=True, metavar="PICTURE", help="e.g. preview.png")
    preview.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as in train"
    )
    preview.add_argument("--model", metavar="NAME", help="for its input size; default: 32 pixels")
    preview.add_argument("--input-size", type=positive, metavar="N", help="pixels")
    preview.add_argument("--rows", type=positive, default=6, metavar="N", help="default: 6")
    preview.add_argument("--seed", type=int, default=0, help="default: 0")
    preview.add_argument("--force", action="store_true", help="replace the picture that is there")


def _add_compare(add: Add) -> None:
    compare = add(
        "compare",
        _compare,
        "put runs side by side, in a table and a picture",
        "runs/plain56 runs/resnet56 --out compare.png",
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    compare.add_argument(
        "--out", metavar="PICTURE", help="draw the curves of all, e.g. into a .png"
    )
    compare.add_argument("--force", action="store_true", help="replace the picture that is there")


def _span(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"must be two steps, e.g. 10:20: {text}")
    return int(first), int(last)


def _class_weights(text: str | None) -> dict[str, float] | str | None:
    if text is None or text == "balanced":
        return text
    weights = {}
    for part in text.split(","):
        name, _, factor = part.rpartition("=")
        try:
            weights[name] = float(factor)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(
                "--class-weights must be 'balanced' or factors by class, e.g. cat=2,dog=0.5. "
                f"Received: {text!r}"
            )
    return weights


def _train(options: argparse.Namespace) -> int:
    if options.workers:
        return _train_in_group(options)
    # What can be wrong is checked in the order of its cost: names, then files, then the network.
    row = _named_row(options)
    import_tensorflow()
    before = _run_to_resume(options)
    row = row or _row_of_run(options, before)
    import tensorflow as tf

    from keras_resnet import training

    training.runs.refuse_existing_run(options.out, options.force, resume=options.resume)
    training.interruption.Schedule(options.checkpoint_every)
    # For this process, which is ours: a resumed run is the uninterrupted one, bit by bit.
    tf.config.experimental.enable_op_determinism()
    # Before the data: a process that has run an operation can join no cluster.
    strategy = training.resolve_strategy(options.strategy)
    if before is not None and options.recipe is None:
        recipe = training.Recipe.from_dict(before["recipe"])
    else:
        recipe = training.get_recipe(options.recipe or "small")
    recipe = recipe.replace(options.set)
    seed = options.seed if options.seed is not None else (before or {}).get("seed", 0)
    source = _data_to_train_on(options, before, seed)
    if not options.json:
        print(
            f"{row.name} on {source.name}: {source.train.examples} images to train, "
            f"{source.test.examples} to test, {len(source.class_names)} classes"
        )
        print_bad_images(source)
    shape = (before or {}).get("input_shape")
    size = options.input_size or (shape[0] if shape else row.input_size)

    def build() -> Any:
        from keras_resnet import Preprocessing
        from keras_resnet.models import create_model
        from keras_resnet.weights import load_weights

        network = create_model(
            row,
            input_shape=(size, size, 3),
            classes=len(source.class_names),
            class_names=source.class_names,
            sync_bn=_kept(options.sync_bn, before, "sync_bn", False),
            preprocessing=Preprocessing(crop=recipe.eval_crop),
        )
        if options.weights and not (before and before.get("epochs")):
            load_weights(network, options.weights, skip_head=None)
        return network

    weights = _class_weights(options.class_weights)
    result = training.fit(
        build,
        source,
        recipe,
        strategy=strategy,
        run_dir=options.out,
        seed=seed,
        accumulate=_kept(options.accumulate, before, "accumulate", 1),
        precision=_kept(options.precision, before, "precision", "float32"),
        class_weights=_kept(weights, before, "class_weights", None),
        precise_bn=_kept(options.precise_bn, before, "precise_bn", False),
        checkpoint_every=options.checkpoint_every,
        keep_checkpoints=options.keep_checkpoints,
        resume=options.resume,
        profile=options.profile,
        verbose=not options.json,
        force=options.force,
    )
    _print_result(options, result)
    return 0


def _print_result(options: argparse.Namespace, result: Any) -> None:
    if options.json:
        print(json.dumps({"run": options.out, **result.history[-1]}))
    else:
        accuracy = result.history[-1]["val_accuracy"]
        if result.evaluation is None:
            print("the run was finished before; there is nothing to resume")
        else:
            accuracy = result.evaluation.accuracy
        print(f"test accuracy {accuracy:.2%}; the run is in {options.out}")


def _train_in_group(options: argparse.Namespace) -> int:
    """The same command in several processes on this machine."""
    from keras_resnet.training.launch import launch

    if options.strategy not in ("auto", "multiworker"):
        raise ValueError(
            "--workers starts processes that train as one; it goes with --strategy auto or "
            f"multiworker. Received: --strategy {options.strategy}"
        )
    _named_row(options)
    run_json = Path(options.out) / "run.json"

    def written() -> int | None:
        return run_json.stat().st_mtime_ns if run_json.is_file() else None

    before = written()
    together = ["--strategy", "multiworker"] if options.workers > 1 else []
    command = [sys.executable, "-m", "keras_resnet", *options.arguments, *together, *_AS_WORKER]
    return launch(
        command,
        options.workers,
        log_directory=Path(options.out) / "workers",
        max_restarts=options.max_restarts,
        first_only=("--force",),
        has_begun=lambda: written() != before,
    )


def how_to_go_on(options: argparse.Namespace) -> str:
    """The command that goes on with an interrupted training."""
    words = list(options.arguments)
    if tuple(words[-2:]) == _AS_WORKER:  # of a group, which was given the rest by a person
        words = words[:-4] if words[-4:-2] == ["--strategy", "multiworker"] else words[:-2]
    command = ["keras-resnet", "train", "--resume", "--out", options.out]
    for word, value in zip(words, [*words[1:], ""], strict=True):
        name, _, joined = word.partition("=")
        if name in _NOT_REMEMBERED:
            command += [name, joined or value]
    return shlex.join(command)


def _run_to_resume(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the run that is to go on was started with, or None if a training starts."""
    if not options.resume:
        return None
    path = Path(options.out) / "run.json"
    if not path.is_file():
        if options.model is None or options.data is None:
            raise FileNotFoundError(
                f"There is nothing to resume at {options.out}; start with --model and --data"
            )
        return None
    from keras_resnet.training.runs import read_info

    return read_info(options.out)


def _kept(given: Any, before: dict[str, Any] | None, name: str, default: Any) -> Any:
    """An option: as it is given, else as the resumed run had it, else its default."""
    if given or before is None:
        return given or default
    return before.get(name, default)


def _named_row(options: argparse.Namespace) -> architecture.Architecture | None:
    return None if options.model is None else architecture.get_architecture(options.model)


def _row_of_run(
    options: argparse.Namespace, before: dict[str, Any] | None
) -> architecture.Architecture:
    if before is None:
        raise ValueError("Say which network to train: --model NAME; see keras-resnet list")
    if not before.get("architecture"):
        raise ValueError(
            f"The run {options.out} did not train a network of this package; go on with "
            "keras_resnet.training.fit(..., resume=True)"
        )
    return architecture.Architecture.from_dict(before["architecture"])


def _data_to_train_on(options: argparse.Namespace, before: dict[str, Any] | None, seed: int) -> Any:
    from keras_resnet import data

    if options.data is not None:
        return data.load(
            options.data,
            skip_bad_images=options.skip_bad_images,
            seed=seed,
            cache=options.cache,
        )
    if before is None:
        raise ValueError(f"Say what to train on: --data DATA, {DATA_HELP}")
    if before.get("load_data") is None:
        raise ValueError(f"The run {options.out} does not say how to load its data; give --data")
    return data.load(**{**before["load_data"], "cache": options.cache})


def _evaluate(options: argparse.Namespace) -> int:
    if (options.model is None) == (options.name is None):
        return fail("give either RUN or --model NAME with --weights")
    import_tensorflow()
    from keras_resnet import data, training

    model, preprocessing, load_data = load(options.model or options.name, options.weights)
    if options.data:
        source = data.load(options.data, skip_bad_images=options.skip_bad_images)
    elif load_data:
        source = load_data()
    else:
        return fail("only a run says what to measure on; give --data")
    print_bad_images(source)
    result = training.evaluate(model, source, preprocessing=preprocessing, verbose=not options.json)
    if options.json:
        values = result.to_dict(confusion=options.per_class)
        print(json.dumps({"data": source.name, **values}))
        return 0
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
    print(
        f"{result.correct} of {result.examples} test images of {source.name} right: accuracy "
        f"{result.accuracy:.2%}{top5}, loss {result.loss:.4f}"
    )
    if options.per_class:
        print(result.table(source.class_names))
    return 0


def _preview(options: argparse.Namespace) -> int:
    from keras_resnet.files import refuse_existing

    refuse_existing(options.out, options.force)
    size = options.input_size
    if size is None:
        size = architecture.get_architecture(options.model).input_size if options.model else 32
    import_tensorflow()
    from keras_resnet import data, training
    from keras_resnet.data.preview import preview
    from keras_resnet.preprocessing import Preprocessing

    recipe = training.get_recipe(options.recipe).replace(options.set)
    preview(
        data.load(options.data),
        recipe.augmentation,
        options.out,
        shape=(size, size, 3),
        preprocessing=Preprocessing(crop=recipe.eval_crop),
        recipe=recipe.name,
        rows=options.rows,
        seed=options.seed,
        force=options.force,
    )
    print(json.dumps({"picture": options.out}) if options.json else f"drawn: {options.out}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    import_tensorflow()
    from keras_resnet.training.comparison import compare

    comparison = compare(options.runs)
    if options.out:
        comparison.save_picture(options.out, force=options.force)
    print(json.dumps(comparison.to_dict()) if options.json else comparison)
    return 0
