"""How long a user waits: imports, and building a ResNet-50, beside keras.applications.

    python benchmarks/startup.py [--rounds 5] [--json]

Every measurement is a process of its own; the contenders take turns, so that all see the same
machine. Ratios are medians over the rounds, with the smallest and the largest in brackets.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

TIMED = """
import time
started = time.perf_counter()
{}
print(time.perf_counter() - started)
"""

BUILD = """
import keras
{setup}
import time
started = time.perf_counter()
{build}
print(time.perf_counter() - started)
"""

CONTENDERS = {
    "import keras_resnet": TIMED.format("import keras_resnet"),
    "import keras": TIMED.format("import keras"),
    "first keras_resnet.ResNet50": TIMED.format("import keras_resnet; keras_resnet.ResNet50"),
    "build keras_resnet.ResNet50()": BUILD.format(
        setup="import keras_resnet; keras_resnet.ResNet50", build="keras_resnet.ResNet50()"
    ),
    "build keras.applications.ResNet50": BUILD.format(
        setup="keras.applications.ResNet50", build="keras.applications.ResNet50(weights=None)"
    ),
}

RATIOS = (
    ("first keras_resnet.ResNet50", "import keras"),
    ("build keras_resnet.ResNet50()", "build keras.applications.ResNet50"),
)


def measure(code: str) -> float:
    """Seconds that a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description="Start-up times beside keras.applications.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name, code in CONTENDERS.items():
            seconds[name].append(measure(code))
    if options.json:
        print(json.dumps(seconds))
        return
    for name, values in seconds.items():
        print(f"{name:36} {1e3 * statistics.median(values):8.1f} ms")
    for ours, theirs in RATIOS:
        ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
        print(
            f"{ours} / {theirs}: {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    main()
