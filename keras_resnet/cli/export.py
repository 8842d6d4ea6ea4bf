"""Subcommands that make bundles, check them and run them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_resnet.cli.common import (
    DATA_HELP,
    EXIT_FAILED,
    MODEL_HELP,
    WEIGHTS_HELP,
    Add,
    count,
    fail,
    load,
    positive,
)
from keras_resnet.quiet import held_back_stderr, import_tensorflow


def add_commands(add: Add) -> None:
    """Adds export, optimize, inspect, verify, benchmark, classify and serve."""
    _add_export(add)
    _add_optimize(add)

    inspect = add(
        "inspect", _inspect, "say what a .tflite file holds", "model.tflite --target xnnpack"
    )
    inspect.add_argument("file", metavar="FILE", help="any .tflite file, or a bundle")
    inspect.add_argument(
        "--target",
        choices=("xnnpack", "tflm", "web", "mediapipe"),
        help="also say what this runtime would refuse or run slowly; status 1 if it refuses",
    )

    verify = add("verify", _verify, "check a bundle against its golden vectors", "digits-int8")
    verify.add_argument("bundle", metavar="BUNDLE")

    benchmark = add(
        "benchmark",
        _benchmark,
        "measure the latency of bundles, in turns",
        "digits-float32 digits-int8 --threads 1 2",
    )
    benchmark.add_argument("bundles", nargs="+", metavar="BUNDLE", help="or any .tflite file")
    benchmark.add_argument(
        "--threads", nargs="+", type=positive, metavar="N", help="of the CPU; default: 1"
    )
    benchmark.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="shortest duration of each measurement; default: 10 (MLPerf: 60)",
    )
    benchmark.add_argument(
        "--queries",
        type=positive,
        default=128,
        metavar="N",
        help="smallest number of queries of each; default: 128 (MLPerf: 1024)",
    )
    benchmark.add_argument(
        "--plot",
        metavar="PICTURE",
        help="draw accuracy against latency and size, e.g. into a .png or .svg",
    )

    classify = add(
        "classify",
        _classify,
        "name what images show",
        "digits-int8 seven.png --top 3\n  keras-resnet classify digits-int8 photographs --json",
    )
    classify.add_argument("bundle", metavar="BUNDLE")
    classify.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, or directories with all that is in them"
    )
    classify.add_argument("--top", type=positive, default=3, help="classes to show; default: 3")
    classify.add_argument("--threads", type=positive, help="of the CPU; default: LiteRT's choice")

    serve = add(
        "serve",
        _serve,
        "show bundles in this machine's browser, until Ctrl-C",
        "digits-int8 digits-float32\n  keras-resnet serve digits-int8 --port 0 --json",
    )
    serve.add_argument("bundles", nargs="+", metavar="BUNDLE")
    serve.add_argument(
        "--port", type=count, default=8000, metavar="N", help="0: any that is free; default: 8000"
    )
    serve.add_argument(
        "--page", metavar="DIRECTORY", help="of the page; default: examples/web of a checkout"
    )


def _add_export(add: Add) -> None:
    export = add(
        "export",
        _export,
        "convert a trained network, verify it and write a bundle",
        "runs/digits --scheme int8 --out digits-int8\n"
        "  keras-resnet export runs/digits --target tflm --out digits-tflm",
    )
    export.add_argument("model", metavar="RUN", help=MODEL_HELP)
    export.add_argument("--weights", metavar="SOURCE", help=WEIGHTS_HELP)
    export.add_argument("--out", required=True, metavar="BUNDLE", help="directory to write")
    export.add_argument("--force", action="store_true", help="replace the bundle that is there")
    form = export.add_argument_group("the file")
    form.add_argument(
        "--target",
        choices=("pi", "android", "web", "tflm"),
        help="device that it is for: chooses what is not chosen here, and refuses, with the "
        "reason, what cannot work there",
    )
    form.add_argument(
        "--scheme", default="int8", help="float32, float16, dynamic_int8, int8 (default), int16x8"
    )
    form.add_argument(
        "--batch", type=_batch, default=1, metavar="N|dynamic", help="images at a time; default: 1"
    )
    form.add_argument(
        "--io",
        default="auto",
        choices=("auto", "uint8", "int8", "float32"),
        help="what an int8 file takes and gives; auto: uint8 pixels and float32 probabilities",
    )
    form.add_argument(
        "--outputs", default="probabilities", choices=("probabilities", "logits", "features")
    )
    form.add_argument(
        "--c-array",
        action="store_true",
        help="also write it as C++ source for TFLite Micro, model.h and model.cc in the bundle, "
        "with the size of the arena that it needs; comes with --target tflm",
    )
    proof = export.add_argument_group("the proof")
    proof.add_argument(
        "--calibration",
        metavar="DATA",
        help="source of the calibration images, from its training split, or an .npz file with an "
        "array `images`; default: the run's data, or what comes with --weights cifar10",
    )
    proof.add_argument(
        "--evaluation",
        metavar="DATA",
        help="source to compare the accuracy on, by its test split; none: golden images only; "
        "default: the run's data",
    )
    proof.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")
    proof.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="largest loss of accuracy, as a fraction of the evaluation images, before the export "
        "is rejected (a 95%% interval that reaches beyond it is a warning); default: 0.01",
    )
    proof.add_argument(
        "--layers",
        action="store_true",
        help="measure the signal-to-quantization-noise ratio of every layer, worst first, and put "
        "it into the report",
    )
    proof.add_argument(
        "--draw-layers", metavar="PICTURE", help="draw them as well, e.g. into a .png or .svg"
    )
    proof.add_argument(
        "--repair",
        action="store_true",
        help="if the export would be rejected, leave the fewest layers in float32 that make it "
        "pass, and say which and at what cost",
    )


def _add_optimize(add: Add) -> None:
    optimize = add(
        "optimize",
        _optimize,
        "train a network on for a smaller file",
        "runs/digits --method qat --out digits-qat\n"
        "  keras-resnet optimize runs/digits --method prune --sparsity 0.5 --out runs/pruned",
    )
    optimize.add_argument("model", metavar="RUN", help=MODEL_HELP)
    optimize.add_argument("--weights", metavar="SOURCE", help=WEIGHTS_HELP)
    optimize.add_argument(
        "--method",
        required=True,
        choices=("qat", "prune", "cluster"),
        help="qat: with the rounding of an int8 file, writes a bundle; prune, cluster: zeros, or "
        "few different values, in every kernel, write a run to export",
    )
    optimize.add_argument("--out", required=True, metavar="BUNDLE|RUN", help="directory to write")
    optimize.add_argument("--data", metavar="DATA", help=f"{DATA_HELP}; default: the run's")
    optimize.add_argument("--recipe", metavar="NAME", help="default: the run's")
    optimize.add_argument(
        "--epochs", type=positive, metavar="N", help="default: a tenth of the recipe's"
    )
    optimize.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as in train"
    )
    optimize.add_argument(
        "--sparsity", type=float, default=0.5, metavar="FRACTION", help="of prune; default: 0.5"
    )
    optimize.add_argument(
        "--clusters", type=positive, default=16, metavar="N", help="of cluster; default: 16"
    )
    optimize.add_argument(
        "--max-drop", type=float, default=0.01, metavar="FRACTION", help="of qat; as in export"
    )
    optimize.add_argument("--strategy", default="auto", help="as in train")
    optimize.add_argument("--seed", type=int, default=0, help="default: 0")
    optimize.add_argument("--force", action="store_true", help="replace what is there")


def _batch(text: str) -> int | str:
    return text if text == "dynamic" else positive(text)


def _export(options: argparse.Namespace) -> int:
    from keras_resnet.export.presets import get_preset
    from keras_resnet.export.schemes import get_scheme
    from keras_resnet.files import refuse_existing

    scheme = get_scheme(options.scheme)
    refuse_existing(options.out, options.force)
    import_tensorflow()
    from keras_resnet import data, export
    from keras_resnet.weights import calibration_images

    model, preprocessing, load_data = load(options.model, options.weights)
    named = options.calibration or calibration_images(options.weights)
    if scheme.is_calibrated and named is None and load_data is None:
        return fail("only a run says what to calibrate with; give --calibration")
    calibration = evaluation = None
    if options.outputs == "features":
        options.evaluation = "none"  # what has no classes has no accuracy
    wants_own = options.evaluation is None or (scheme.is_calibrated and named is None)
    if load_data is not None and wants_own:
        calibration = evaluation = load_data()
    if scheme.is_calibrated and named is not None:
        calibration = named
        if not named.endswith(".npz"):
            calibration = data.load(named, skip_bad_images=options.skip_bad_images)
    if options.evaluation == "none":
        evaluation = None
    elif options.evaluation:
        evaluation = data.load(options.evaluation, skip_bad_images=options.skip_bad_images)
    try:
        bundle = _noting_warnings(
            export.to_tflite,
            model,
            options.out,
            options.scheme,
            calibration=calibration,
            evaluation=evaluation,
            preprocessing=preprocessing,
            max_drop=options.max_drop,
            batch=options.batch,
            io=options.io,
            outputs=options.outputs,
            target=options.target,
            c_array=options.c_array,
            layers=options.layers or options.draw_layers is not None,
            repair=options.repair,
            force=options.force,
        )
    except export.ExportRejected as rejection:
        _draw_layers(options, rejection.report)
        return _print_rejection(options, rejection)
    _draw_layers(options, _print_bundle(options, bundle))
    if options.target is not None and not options.json:
        chosen = {"scheme": options.scheme, "io": options.io, "batch": options.batch}
        print(get_preset(options.target).explain(**chosen))
    return 0


def _noting_warnings(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the function returns; warnings that are not in its report go to standard error."""
    from keras_resnet.export.calibration import CalibrationWarning
    from keras_resnet.export.repair import RepairWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", CalibrationWarning)
        warnings.simplefilter("always", RepairWarning)
        result = function(*arguments, **options)
    for warning in caught:
        print(f"keras-resnet: warning: {warning.message}", file=sys.stderr)
    return result


def _draw_layers(options: argparse.Namespace, report: Any) -> None:
    from keras_resnet.export.layers import draw

    if options.draw_layers is not None:
        draw(report.layers, options.draw_layers)


def _print_bundle(options: argparse.Namespace, bundle: Any) -> Any:
    report = bundle.verification
    if options.json:
        print(json.dumps({"bundle": options.out, **bundle.manifest["verification"]}))
    else:
        print(report)
        print(f"{options.out}: {bundle.model_path.stat().st_size:,} bytes")
    return report


def _print_rejection(options: argparse.Namespace, rejection: Any) -> int:
    report = rejection.report
    print(json.dumps(report.to_dict()) if options.json else report)
    page = f"{options.out.rstrip(os.sep)}.rejected.html"
    return fail(f"rejected, no bundle was written, see {page}: {rejection}")


def _optimize(options: argparse.Namespace) -> int:
    from keras_resnet.files import refuse_existing

    refuse_existing(options.out, options.force)
    import_tensorflow()
    from keras_resnet import data, export, training
    from keras_resnet.export import optimize

    model, preprocessing, load_data = load(options.model, options.weights)
    if options.data:
        source = data.load(options.data, seed=options.seed)
    elif load_data:
        source = load_data()
    else:
        return fail("only a run says what it was trained on; give --data")
    if options.recipe:
        recipe = training.get_recipe(options.recipe)
    elif Path(options.model).is_dir():
        recipe = training.load_run(options.model).recipe
    else:
        return fail("only a run says how it was trained; give --recipe")
    common = {
        "strategy": options.strategy,
        "preprocessing": preprocessing,
        "seed": options.seed,
        "verbose": not options.json,
    }
    recipe = optimize.fine_tuning(recipe, options.method, epochs=options.epochs)
    recipe = recipe.replace(options.set)
    if options.method == "qat":
        try:
            bundle = optimize.quantization_aware(
                model,
                source,
                recipe,
                options.out,
                max_drop=options.max_drop,
                force=options.force,
                **common,
            )
        except export.ExportRejected as rejection:
            return _print_rejection(options, rejection)
        _print_bundle(options, bundle)
        return 0
    if options.method == "prune":
        result = optimize.prune(model, source, recipe, sparsity=options.sparsity, **common)
    else:
        result = optimize.cluster(model, source, recipe, clusters=options.clusters, **common)
    result.save(options.out, force=options.force)
    if options.json:
        print(json.dumps({"run": options.out, **result.to_dict()}))
    else:
        print(
            f"test images right: {result.correct_before} before, {result.correct} after, of "
            f"{result.examples}; {result.sparsity:.1%} of the weights are zero; "
            f"the run is in {options.out}"
        )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from keras_resnet.export.inspection import inspect

    path = Path(options.file)
    found = inspect(path / "model.tflite" if path.is_dir() else path, options.target)
    print(json.dumps(found.to_dict()) if options.json else found)
    return EXIT_FAILED if found.is_refused else 0


def _benchmark(options: argparse.Namespace) -> int:
    from keras_resnet.export.benchmarking import benchmark

    measured = benchmark(
        options.bundles,
        threads=options.threads,
        seconds=options.seconds,
        queries=options.queries,
    )
    print(json.dumps(measured.to_dict()) if options.json else measured)
    if options.plot is not None:
        from keras_resnet.export.pareto import draw

        draw(measured, options.plot)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from keras_resnet.export.verification import verify

    with held_back_stderr():
        report = verify(options.bundle)
    print(json.dumps(report.to_dict()) if options.json else report)
    return 0 if report.passed else EXIT_FAILED


def _image_files(paths: Sequence[str]) -> Iterator[str]:
    """The files as they are, and for a directory the images in it and below, in order.

    Raises:
        FileNotFoundError: if a directory has none.
    """
    from PIL import Image

    suffixes = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
        if not found:
            raise FileNotFoundError(f"No images in this directory: {path}")
        yield from map(str, found)


def _classify(options: argparse.Namespace) -> int:
    from keras_resnet.export.runtime import Classifier

    with held_back_stderr():
        classifier = Classifier(options.bundle, threads=options.threads)
    status = 0
    for image in _image_files(options.images):
        try:
            ranking = classifier(image, top=options.top)
        except (ValueError, OSError) as error:
            status = fail(str(error))  # the other images are still wanted
            continue
        if options.json:
            classes = [{"label": label, "probability": p} for label, p in ranking]
            print(json.dumps({"image": image, "classes": classes}, ensure_ascii=False))
        else:
            print(f"{image}: " + ", ".join(f"{label} {p:.1%}" for label, p in ranking))
    return status


def _serve(options: argparse.Namespace) -> int:
    from keras_resnet.export.serving import Server

    with (
        Server(options.bundles, port=options.port, page=options.page) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        if options.json:
            print(json.dumps({"url": server.url, "bundles": server.names}), flush=True)
        else:
            print(f"{', '.join(server.names)}: {server.url} (Ctrl-C stops)", flush=True)
        server.wait()
    return 0
