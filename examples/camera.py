"""Names what a camera sees, again and again, until Ctrl-C.

    pip install opencv-python-headless
    python examples/camera.py BUNDLE                  # the first camera
    python examples/camera.py BUNDLE --source film.mp4 --json

Needs no TensorFlow: with `ai-edge-litert`, `numpy`, `Pillow` and OpenCV it runs on a board. The
network sees the middle of each frame, as it does of a photograph.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_resnet.export import Classifier


def frames(source: int | str) -> Iterator[np.ndarray]:
    """Raw RGB frames uint8 (height, width, 3), until there are no more."""
    try:
        import cv2
    except ModuleNotFoundError:
        sys.exit("camera.py needs OpenCV: pip install opencv-python-headless")
    capture: Any = cv2.VideoCapture(source)
    if not capture.isOpened():
        sys.exit(f"No camera or film that can be read: {source}")
    try:
        while True:
            is_there, frame = capture.read()
            if not is_there:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])  # OpenCV's order is blue, green, red
    finally:
        capture.release()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per frame."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--source", default="0", help="number of a camera, or a film; default: 0")
    parser.add_argument("--top", type=int, default=1, help="classes to name; default: 1")
    parser.add_argument("--threads", type=int, help="of the CPU; default: LiteRT's choice")
    parser.add_argument("--json", action="store_true", help="print JSON lines, for programs")
    options = parser.parse_args(arguments)
    try:
        classifier = Classifier(options.bundle, threads=options.threads)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    source = int(options.source) if options.source.isdecimal() else options.source
    try:
        for frame in frames(source):
            started = time.perf_counter()
            ranking = classifier(frame, top=options.top)
            milliseconds = 1e3 * (time.perf_counter() - started)
            if options.json:
                classes = [{"label": label, "probability": p} for label, p in ranking]
                line = json.dumps({"classes": classes, "milliseconds": round(milliseconds, 3)})
            else:
                named = ", ".join(f"{label} {p:.0%}" for label, p in ranking)
                line = f"{named} ({milliseconds:.1f} ms)"
            print(line, flush=True)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
