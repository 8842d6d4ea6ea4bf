"""Running a bundle on a device: LiteRT, numpy and Pillow are all it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.export.bundle import Bundle


class Classifier:
    """Names what an image shows.

    Attributes:
        bundle: the bundle that it runs.
        labels: class names in the order of the outputs.
    """

    def __init__(self, path: str | os.PathLike[str] | Bundle, *, threads: int | None = None):
        """Opens a bundle.

        Args:
            path: the bundle's directory.
            threads: of the CPU; None leaves the choice to LiteRT.

        Raises:
            FileNotFoundError: if there is no such directory.
            BundleError: if it is no bundle, or was changed after it was exported.
        """
        self.bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        self.labels = self.bundle.labels
        self._preprocessing = self.bundle.preprocessing
        self._runner = Runner(self.bundle.model_path, threads=threads)

    def __call__(self, image: Any, top: int | None = 5) -> list[tuple[str, float]]:
        """The most probable classes of an image, the best first.

        Args:
            image: a path, the bytes of a file, a PIL image, or a uint8 array
                `(height, width, 3)` of raw RGB pixels; of any size.
            top: how many classes; None for all.

        Returns:
            `[(label, probability), ...]`.

        Raises:
            BadImageError: if the file is no image.
            TypeError: for an array of another type, e.g. one that was normalized.
        """
        height, width, channels = self.bundle.input_shape
        pixels = self._preprocessing.fit(image, (height, width), channels)
        probabilities = self.probabilities(pixels[None])[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.labels[i], float(probabilities[i])) for i in best]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Of raw uint8 images `(n, height, width, channels)` in the network's size.

        Returns:
            float32 `(n, classes)`.
        """
        return self._runner(images)


class Runner:
    """A `.tflite` file with one image input and one output, run image by image."""

    def __init__(self, model: Path | bytes, *, threads: int | None = None):
        from ai_edge_litert.interpreter import Interpreter

        source: dict[str, Any] = (
            {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        )
        self.interpreter = Interpreter(**source, num_threads=threads)
        self.interpreter.allocate_tensors()
        (self._input,) = self.interpreter.get_input_details()
        (self._output,) = self.interpreter.get_output_details()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raw uint8 images `(n, height, width, channels)` to outputs `(n, ...)`."""
        shape = tuple(self._input["shape"][1:])
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"Images must be raw pixels, uint8 (n, {', '.join(map(str, shape))}). Received: "
                f"dtype={images.dtype}, shape={images.shape}"
            )
        return np.concatenate([self._run(image[None]) for image in images])

    def _run(self, image: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self._input["index"], image.astype(self._input["dtype"]))
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self._output["index"])
