"""The command keras-resnet.

Every import of weight is inside the subcommand that needs it, so that `--help` answers at once and
`verify` and `classify` run where there is neither TensorFlow nor Keras.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_resnet import __version__, architecture
from keras_resnet.quiet import held_back_stderr, import_tensorflow

EXIT_FAILED = 1

_DATA_HELP = "digits, folder:PATH or tfds:NAME"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0; 1 (it failed, one line said why); 2 (usage); 75 (a training lost another worker, and may be
    started again); 128 and the number of the signal that ended it, 130 for Ctrl-C.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt as interruption:
        number = getattr(interruption, "signal", signal.SIGINT)
        print(f"keras-resnet: {str(interruption) or 'interrupted'}", file=sys.stderr)
        if str(interruption):  # of a training that can go on
            print(f"go on with: {_how_to_go_on(options)}", file=sys.stderr)
        return 128 + int(number)
    except BrokenPipeError:  # the reader of a pipe, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if options.debug:
            raise
        return _fail(f"{options.command} needs {error.name}, which is not installed here")
    except Exception as error:
        strategies = sys.modules.get("keras_resnet.training.strategies")
        if strategies is not None and strategies.is_lost_peer(error):
            from keras_resnet.training.launch import EXIT_LOST_PEER

            _fail(f"another worker was lost: {str(error).splitlines()[0]}")
            return EXIT_LOST_PEER
        known = isinstance(error, ValueError | OSError | RuntimeError)
        from_tensorflow = type(error).__module__.startswith("tensorflow.")
        if options.debug or not (known or from_tensorflow):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"keras-resnet: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-resnet",
        description="Residual networks from the paper to the phone.",
        epilog="Example:\n"
        "  keras-resnet train --model resnet20 --data digits --recipe digits --out runs/digits\n"
        "  keras-resnet export runs/digits --scheme int8 --out digits-int8\n"
        "  keras-resnet classify digits-int8 photograph.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keras-resnet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, example: str) -> Any:
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"Example:\n  keras-resnet {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # arguments are passed on to workers, where each must be findable
        )
        command.set_defaults(run=run)
        command.add_argument("--debug", action="store_true", help="show a traceback of an error")
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        return command

    _add_train(add)

    evaluate = add("evaluate", _evaluate, "measure a trained network on test images", "runs/digits")
    evaluate.add_argument("model", metavar="RUN", help="run directory, or .keras file of ours")
    evaluate.add_argument("--data", metavar="DATA", help=f"{_DATA_HELP}; default: the run's")
    evaluate.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")

    evaluate.add_argument(
        "--per-class", action="store_true", help="precision and recall by class, and confusions"
    )

    preview = add(
        "preview",
        _preview,
        "draw what the network will see in training",
        "--data digits --recipe digits --out preview.png",
    )
    preview.add_argument("--data", required=True, metavar="DATA", help=_DATA_HELP)
    preview.add_argument("--recipe", default="small", metavar="NAME", help="default: small")
    preview.add_argument("--out", required=True, metavar="PICTURE", help="e.g. preview.png")
    preview.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as in train"
    )
    preview.add_argument("--model", metavar="NAME", help="for its input size; default: 32 pixels")
    preview.add_argument("--input-size", type=_positive, metavar="N", help="pixels")
    preview.add_argument("--rows", type=_positive, default=6, metavar="N", help="default: 6")
    preview.add_argument("--seed", type=int, default=0, help="default: 0")
    preview.add_argument("--force", action="store_true", help="replace the picture that is there")

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

    export = add(
        "export",
        _export,
        "convert a trained network, verify it and write a bundle",
        "runs/digits --scheme int8 --out digits-int8",
    )
    export.add_argument("model", metavar="RUN", help="run directory, or .keras file of ours")
    export.add_argument("--out", required=True, metavar="BUNDLE", help="directory to write")
    export.add_argument(
        "--scheme", default="int8", help="float32, float16, dynamic_int8, int8 (default)"
    )
    export.add_argument(
        "--calibration",
        metavar="DATA",
        help="source of the calibration images, from its training split; default: the run's data",
    )
    export.add_argument(
        "--evaluation",
        metavar="DATA",
        help="source to compare the accuracy on, by its test split; none: golden images only; "
        "default: the run's data",
    )
    export.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")
    export.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="largest loss of accuracy before the export is rejected; default: 0.01",
    )
    export.add_argument("--force", action="store_true", help="replace the bundle that is there")

    verify = add("verify", _verify, "check a bundle against its golden vectors", "digits-int8")
    verify.add_argument("bundle", metavar="BUNDLE")

    classify = add("classify", _classify, "name what images show", "digits-int8 seven.png --top 3")
    classify.add_argument("bundle", metavar="BUNDLE")
    classify.add_argument("images", nargs="+", metavar="IMAGE")
    classify.add_argument("--top", type=_positive, default=3, help="classes to show; default: 3")
    classify.add_argument("--threads", type=_positive, help="of the CPU; default: LiteRT's choice")

    listing = add("list", _list, "print the networks", "'resnet5*'")
    listing.add_argument("pattern", nargs="?", default="*", help="e.g. 'resnet*'")

    info = add("info", _info, "print a network stage by stage", "resnet50 --input-size 224")
    info.add_argument("name", help="see keras-resnet list")
    info.add_argument("--input-size", type=_positive, metavar="N", help="pixels; default: its own")
    info.add_argument("--classes", type=_positive, metavar="N", help="default: its own")
    return parser


def _add_train(add: Callable[..., Any]) -> None:
    train = add(
        "train",
        _train,
        "train a network and write a run directory",
        "--model resnet20 --data folder:photographs --recipe small --out runs/photographs\n"
        "  keras-resnet train --resume --out runs/photographs",
    )
    what = train.add_argument_group("what to train")
    what.add_argument("--model", metavar="NAME", help="see keras-resnet list")
    what.add_argument("--data", metavar="DATA", help=_DATA_HELP)
    what.add_argument("--out", required=True, metavar="RUN", help="directory to write")
    what.add_argument("--input-size", type=_positive, metavar="N", help="pixels; default: its own")
    what.add_argument(
        "--weights",
        metavar="SOURCE",
        help="start from these, with a new classifier: a file, or "
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
        "--workers", type=_count, metavar="N", help="start N processes here that train as one"
    )
    where.add_argument(
        "--max-restarts",
        type=_count,
        default=3,
        metavar="N",
        help="with --workers: how often the group starts again after one was lost; default: 3",
    )
    where.add_argument(
        "--accumulate",
        type=_positive,
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
        "--keep-checkpoints", type=_positive, default=3, metavar="N", help="default: 3"
    )
    life.add_argument("--force", action="store_true", help="overwrite the run that is there")
    life.add_argument(
        "--profile",
        type=_span,
        metavar="FIRST:LAST",
        help="profile these steps, e.g. 10:20, for TensorBoard",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive integer: {text}")
    return int(text)


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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer: {text}")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    if options.workers:
        return _train_in_group(options)
    # What can be wrong is checked in the order of its cost: names, then files, then the network.
    if options.model is not None:
        architecture.get_architecture(options.model)
    import_tensorflow()
    before = _run_to_resume(options)
    row = _row_to_train(options, before)
    import tensorflow as tf

    from keras_resnet import training

    training.runs.refuse_existing_run(options.out, options.force, resume=options.resume)
    training.interruption.Schedule(options.checkpoint_every)
    # For this process, which is ours: a resumed run is the uninterrupted one, bit by bit.
    tf.config.experimental.enable_op_determinism()
    # Before the data: a process that has run an operation can join no cluster.
    strategy = training.resolve_strategy(options.strategy)
    if before is None:
        recipe = training.get_recipe(options.recipe or "small").replace(options.set)
    elif options.recipe is None:
        recipe = training.Recipe.from_dict(before["recipe"]).replace(options.set)
    else:
        recipe = training.get_recipe(options.recipe).replace(options.set)
    seed = options.seed if options.seed is not None else (before or {}).get("seed", 0)
    source = _data_to_train_on(options, before, seed)
    if not options.json:
        print(
            f"{row.name} on {source.name}: {source.train.examples} images to train, "
            f"{source.test.examples} to test, {len(source.class_names)} classes"
        )
        _print_bad_images(source)
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
            load_weights(network, options.weights, skip_head=True)
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
    if options.json:
        print(json.dumps({"run": options.out, **result.history[-1]}))
    else:
        accuracy = result.history[-1]["val_accuracy"]
        if result.evaluation is None:
            print("the run was finished before; there is nothing to resume")
        else:
            accuracy = result.evaluation.accuracy
        print(f"test accuracy {accuracy:.2%}; the run is in {options.out}")
    return 0


def _train_in_group(options: argparse.Namespace) -> int:
    """The same command in several processes on this machine."""
    from keras_resnet.training.launch import launch

    if options.strategy not in ("auto", "multiworker"):
        raise ValueError(
            "--workers starts processes that train as one; it goes with --strategy auto or "
            f"multiworker. Received: --strategy {options.strategy}"
        )
    if options.model is not None:
        architecture.get_architecture(options.model)
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


# The last one counts: what is started by `_train_in_group` is a worker, and starts none itself.
_AS_WORKER = ("--workers", "0")

# What a run does not remember, since it may go on elsewhere, and what a person will not want lost.
_NOT_REMEMBERED = ("--workers", "--strategy", "--checkpoint-every", "--keep-checkpoints", "--cache")


def _how_to_go_on(options: argparse.Namespace) -> str:
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


def _row_to_train(options: argparse.Namespace, before: dict[str, Any] | None) -> Any:
    if options.model is not None:
        return architecture.get_architecture(options.model)
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
        raise ValueError(f"Say what to train on: --data DATA, {_DATA_HELP}")
    if before.get("load_data") is None:
        raise ValueError(f"The run {options.out} does not say how to load its data; give --data")
    return data.load(**{**before["load_data"], "cache": options.cache})


def _print_bad_images(source: Any) -> None:
    if source.bad_images:
        print(f"left out {len(source.bad_images)} files that are no images:", file=sys.stderr)
        for path in source.bad_images:
            print(f"  {path}", file=sys.stderr)


def _load(path: str) -> tuple[Any, Any, Callable[[], Any] | None]:
    """Model, preprocessing and a function that loads the run's data, if it is a run."""
    from keras_resnet import training
    from keras_resnet.models import load_model
    from keras_resnet.preprocessing import Preprocessing

    if Path(path).is_dir():
        run = training.load_run(path)
        return run.model, run.preprocessing, run.load_data
    model = load_model(path)
    return model, Preprocessing.from_model(model), None


def _evaluate(options: argparse.Namespace) -> int:
    import_tensorflow()
    from keras_resnet import data, training

    model, preprocessing, load_data = _load(options.model)
    if options.data:
        source = data.load(options.data, skip_bad_images=options.skip_bad_images)
    elif load_data:
        source = load_data()
    else:
        return _fail("a .keras file does not say what to measure on; give --data")
    _print_bad_images(source)
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


def _export(options: argparse.Namespace) -> int:
    from keras_resnet.export.schemes import get_scheme
    from keras_resnet.files import refuse_existing

    scheme = get_scheme(options.scheme)
    refuse_existing(options.out, options.force)
    import_tensorflow()
    from keras_resnet import data, export

    model, preprocessing, load_data = _load(options.model)
    needs_calibration = scheme.activations == "int8"
    if needs_calibration and not options.calibration and load_data is None:
        return _fail("a .keras file does not say what to calibrate with; give --calibration")
    calibration = evaluation = None
    wants_own = options.evaluation is None or (needs_calibration and not options.calibration)
    if load_data is not None and wants_own:
        calibration = evaluation = load_data()
    if options.calibration and needs_calibration:
        calibration = data.load(options.calibration, skip_bad_images=options.skip_bad_images)
    if options.evaluation == "none":
        evaluation = None
    elif options.evaluation:
        evaluation = data.load(options.evaluation, skip_bad_images=options.skip_bad_images)
    try:
        bundle = export.to_tflite(
            model,
            options.out,
            options.scheme,
            calibration=calibration,
            evaluation=evaluation,
            preprocessing=preprocessing,
            max_drop=options.max_drop,
            force=options.force,
        )
    except export.ExportRejected as rejection:
        if options.json:
            print(json.dumps(rejection.report.to_dict()))
        else:
            print(rejection.report)
        return _fail(f"rejected, nothing was written: {rejection}")
    if options.json:
        print(json.dumps({"bundle": options.out, **bundle.manifest["verification"]}))
    else:
        size = bundle.model_path.stat().st_size
        print(export.Verification.from_dict(bundle.manifest["verification"]))
        print(f"{options.out}: {size:,} bytes")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from keras_resnet.export.verification import verify

    with held_back_stderr():
        report = verify(options.bundle)
    print(json.dumps(report.to_dict()) if options.json else report)
    return 0 if report.passed else EXIT_FAILED


def _classify(options: argparse.Namespace) -> int:
    from keras_resnet.export.runtime import Classifier

    with held_back_stderr():
        classifier = Classifier(options.bundle, threads=options.threads)
    status = 0
    for image in options.images:
        try:
            ranking = classifier(image, top=options.top)
        except (ValueError, OSError) as error:
            status = _fail(str(error))  # the other images are still wanted
            continue
        if options.json:
            classes = [{"label": label, "probability": p} for label, p in ranking]
            print(json.dumps({"image": image, "classes": classes}, ensure_ascii=False))
        else:
            print(f"{image}: " + ", ".join(f"{label} {p:.1%}" for label, p in ranking))
    return status


def _list(options: argparse.Namespace) -> int:
    from keras_resnet.weights.catalog import public_weights

    names = architecture.list_models(options.pattern)
    builders = {name: builder for builder, name in architecture.BUILDERS.items()}
    rows = [(architecture.get_architecture(n), architecture.get_counts(n)) for n in names]
    if options.json:
        described = [
            {
                "builder": builders[row.name],
                **row.to_dict(),
                **vars(counts),
                "gmacs": counts.multiply_adds / 1e9,
                "weights": public_weights(row.name),
            }
            for row, counts in rows
        ]
        print(json.dumps(described))
        return 0
    if not rows:
        return _fail(f"no network matches {options.pattern!r}")
    _print_table(
        ("name", "builder", "parameters", "GMACs", "input", "classes", "weights", "source"),
        [
            (
                row.name,
                builders[row.name],
                f"{counts.parameters:,}",
                counts.gmacs,
                str(row.input_size),
                str(row.classes),
                str(len(public_weights(row.name)) or ""),
                row.source,
            )
            for row, counts in rows
        ],
        right=(2, 3, 4, 5, 6),
    )
    return 0


def _info(options: argparse.Namespace) -> int:
    row = architecture.get_architecture(options.name)
    import_tensorflow()
    from keras_resnet.counting import count
    from keras_resnet.models import create_model
    from keras_resnet.weights.catalog import public_weights

    size = options.input_size or row.input_size
    weights = public_weights(row.name)
    stages = count(create_model(row, input_shape=(size, size, 3), classes=options.classes))
    totals = {
        key: sum(getattr(stage, key) for stage in stages)
        for key in ("parameters", "statistics", "multiply_adds")
    }
    if options.json:
        description = {"architecture": row.to_dict(), "input_size": size, "weights": weights}
        print(json.dumps({**description, "stages": [vars(s) for s in stages], "total": totals}))
        return 0
    print(f"{row.name}, input {size} x {size} x 3: {row.source}")
    if weights:
        print(f"weights: {', '.join(weights)}")
    body = [
        (
            stage.stage,
            " x ".join(map(str, stage.output_shape)),
            f"{stage.parameters:,}",
            f"{stage.statistics:,}",
            f"{stage.multiply_adds:,}",
        )
        for stage in stages
    ]
    total = ("total", "", *(f"{value:,}" for value in totals.values()))
    header = ("stage", "output", "parameters", "BN statistics", "multiply-adds")
    _print_table(header, [*body, total], right=(2, 3, 4))
    return 0


def _print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
