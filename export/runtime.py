"""Running a bundle on a device: LiteRT, numpy and Pillow are all it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.export.bundle import Bundle, BundleError

# Images that a file of any batch is given at a time: enough that a call costs little, few enough
# that the activations of a large network fit into a phone's memory.
_DYNAMIC_BATCH = 8


class Classifier:
    """Names what an image shows.

    Attributes:
        bundle: the bundle that it runs.
        labels: class names in the order of the outputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Bundle,
        *,
        threads: int | None = None,
        reference: bool = False,
    ):
        """Opens a bundle.

        Args:
            path: the bundle's directory.
            threads: of the CPU; None leaves the choice to LiteRT.
            reference: whether to compute with LiteRT's reference kernels, slowly: of an int8 file
                they give what TFLite Micro gives on a microcontroller, where XNNPACK rounds now
                and then otherwise.

        Raises:
            FileNotFoundError: if there is no such directory.
            BundleError: if it is no bundle, was changed after it was exported, or gives features
                instead of scores.
        """
        self.bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        if not self.bundle.labels:
            raise BundleError(
                f"{self.bundle.path} gives features and names no classes: "
                f"{', '.join(self.bundle.outputs)}. Run it with keras_resnet.export.runtime.Runner"
            )
        self.labels = self.bundle.labels
        self._preprocessing = self.bundle.preprocessing
        self._runner = Runner(self.bundle.model_path, threads=threads, reference=reference)

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
            float32 `(n, classes)`; of a file that gives logits, their softmax.
        """
        scores = self._runner(images)
        return _softmax(scores) if self._runner.outputs == ("logits",) else scores


class Runner:
    """A `.tflite` file with one image input, fed raw pixels whatever type it takes.

    The input may be float32, uint8 (the raw byte) or int8 (the raw byte minus 128), of a fixed
    batch or of any; what comes out quantized is turned into the numbers it stands for.

    Attributes:
        interpreter: the LiteRT interpreter.
        outputs: names of the outputs.
    """

    def __init__(self, model: Path | bytes, *, threads: int | None = None, reference: bool = False):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
        source: dict[str, Any] = (
            {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        )
        self.interpreter = Interpreter(
            **source, num_threads=threads, experimental_op_resolver_type=kernels
        )
        self.interpreter.allocate_tensors()
        (self._input,) = self.interpreter.get_input_details()
        self._outputs = self.interpreter.get_output_details()
        self.outputs = tuple(detail["name"] for detail in self._outputs)
        self._batch = int(self._input["shape"][0])
        self._is_dynamic = self._input["shape_signature"][0] == -1

    def __call__(self, images: np.ndarray) -> Any:
        """Runs raw images.

        Args:
            images: uint8 `(n, height, width, channels)`, one or more.

        Returns:
            The outputs `(n, ...)`, those of floating-point numbers and quantized ones float32; of a
            file with several outputs, a dictionary of them by name.
        """
        shape = tuple(self._input["shape"][1:])
        if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
            raise ValueError(
                f"Images must be raw pixels, uint8 (n, {', '.join(map(str, shape))}). Received: "
                f"dtype={images.dtype}, shape={images.shape}"
            )
        step = _DYNAMIC_BATCH if self._is_dynamic else self._batch
        parts = [self._run(images[i : i + step]) for i in range(0, len(images), step)]
        outputs = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        return outputs[0] if len(outputs) == 1 else dict(zip(self.outputs, outputs, strict=True))

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        count = len(images)
        if self._is_dynamic:
            self._resize(count)
        elif count < self._batch:
            # The last batch is filled up with its last image.
            images = np.concatenate([images, np.repeat(images[-1:], self._batch - count, axis=0)])
        self.interpreter.set_tensor(self._input["index"], self._as_input(images))
        self.interpreter.invoke()
        return [self._as_numbers(detail)[:count] for detail in self._outputs]

    def _resize(self, count: int) -> None:
        if count != self._batch:
            self.interpreter.resize_tensor_input(
                self._input["index"], (count, *self._input["shape"][1:]), strict=True
            )
            self.interpreter.allocate_tensors()
            self._batch = count

    def _as_input(self, images: np.ndarray) -> np.ndarray:
        if self._input["dtype"] == np.int8:
            return (images ^ 0x80).view(np.int8)  # minus 128
        return images.astype(self._input["dtype"])

    def _as_numbers(self, detail: dict[str, Any]) -> np.ndarray:
        values = self.interpreter.get_tensor(detail["index"])
        scale, zero_point = detail["quantization"]
        if scale == 0:
            return values
        return (values.astype(np.float32) - zero_point) * np.float32(scale)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
