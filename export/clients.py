"""How a `.tflite` file is run on each platform: code that is right for this very file."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_resnet.export.graph import Graph, Tensor, read_graph

# What MediaPipe and LiteRT.js accept at both ends.
_OPEN_TYPES = ("float32", "uint8")
# Methods of TFLite Micro's resolver whose names do not follow from the operators'.
_MICRO_NAMES = {
    "PADV2": "PadV2",
    "BATCH_MATMUL": "BatchMatMul",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """How to run a file on one platform.

    Attributes:
        platform: its name.
        code: what to write there; empty where the file cannot be used.
        remark: what there is to know besides.
    """

    platform: str
    code: str
    remark: str = ""


def instructions(
    content: bytes, preprocessing: Mapping[str, Any] | None = None
) -> list[Instruction]:
    """Code for every platform, by what the file takes and gives.

    Args:
        content: the `.tflite` file of a classifier.
        preprocessing: `Preprocessing.to_dict()` of it, for how images are fitted.
    """
    graph = read_graph(content)
    source, target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    refusal = _refusal(source, target)
    web_refusal = refusal and f"LiteRT.js {refusal}"
    tasks_refusal = refusal and f"MediaPipe Tasks {refusal}"
    return [
        Instruction(
            "Python, with this package",
            _code("""
                from keras_resnet import export

                classifier = export.Classifier("BUNDLE")
                print(classifier("image.jpg"))  # [(label, probability), ...]
            """),
            _fitting(source, preprocessing),
        ),
        Instruction("Python, with LiteRT alone", _python(source, target)),
        *(
            Instruction(platform, "" if tasks_refusal else _code(code), tasks_refusal)
            for platform, code in _MEDIAPIPE.items()
        ),
        Instruction(
            "Browser, with LiteRT.js", "" if web_refusal else _litert_js(source), web_refusal
        ),
        _micro(graph, source, target),
    ]


_MEDIAPIPE = {
    "Android, with MediaPipe Tasks": """
        // implementation("com.google.mediapipe:tasks-vision:…"), model.tflite among the assets
        val options = ImageClassifier.ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath("model.tflite").build())
            .setMaxResults(3)
            .build()
        val result = ImageClassifier.createFromOptions(context, options)
            .classify(BitmapImageBuilder(bitmap).build())
    """,
    "iOS, with MediaPipe Tasks": """
        // pod "MediaPipeTasksVision", model.tflite in the app's bundle
        let options = ImageClassifierOptions()
        let path = Bundle.main.path(forResource: "model", ofType: "tflite")!
        options.baseOptions.modelAssetPath = path
        options.maxResults = 3
        let result = try ImageClassifier(options: options).classify(image: MPImage(uiImage: image))
    """,
    "Browser, with MediaPipe Tasks": """
        import { FilesetResolver, ImageClassifier } from "@mediapipe/tasks-vision";
        const files = await FilesetResolver.forVisionTasks("/wasm");
        const classifier = await ImageClassifier.createFromOptions(files, {
          baseOptions: { modelAssetPath: "model.tflite" }, maxResults: 3,
        });
        const result = classifier.classify(document.querySelector("img"));
    """,
}


def _code(text: str) -> str:
    return textwrap.dedent(text).strip()


def _refusal(source: Tensor, target: Tensor) -> str:
    """Why a client of phones and browsers does not take the file, or an empty text."""
    types = f"{source.dtype} in and {target.dtype} out"
    if source.dtype not in _OPEN_TYPES or target.dtype not in _OPEN_TYPES:
        return f"takes float32 or uint8 at both ends; this file has {types}: export another."
    if source.shape[0] != 1:
        return "takes one image at a time; this file has another batch: export one with batch 1."
    if source.shape[-1] != 3:
        return "takes RGB images; this file has another number of channels."
    return ""


def _fitting(source: Tensor, preprocessing: Mapping[str, Any] | None) -> str:
    _, height, width, _ = source.shape
    if not preprocessing:
        return f"Images of another size than {height} × {width} are fitted as in training."
    shorter = int(min(height, width) / preprocessing["crop"])
    return (
        f"Images of another size than {height} × {width} are fitted as in training: the shorter "
        f"side is resized to {shorter} ({preprocessing['interpolation']}, antialiased) and the "
        "center is cut out. Elsewhere that is your part."
    )


def _python(source: Tensor, target: Tensor) -> str:
    batch, height, width, channels = source.shape
    image = "np.asarray(image)"
    if channels == 1:
        image += "[..., None]"
    stacked = f"{image}[None]" if batch in (-1, 1) else f"np.stack([{image}] * {batch})"
    stored = {
        "uint8": "pixels",
        "int8": "(pixels ^ 128).view(np.int8)",  # less 128
    }.get(source.dtype, f"pixels.astype(np.{source.dtype})")
    lines = [
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "from PIL import Image",
        "",
        'labels = open("labels.txt", encoding="utf-8").read().splitlines()',
        f'image = Image.open("image.jpg").convert("{"RGB" if channels == 3 else "L"}")',
        f"image = image.resize(({width}, {height}))",
        f"pixels = {stacked}",
        'run = Interpreter("model.tflite").get_signature_runner()',
        f'scores = run({source.name}={stored})["{target.name}"][0]',
    ]
    if target.scale:
        lines.append(
            f"scores = (scores.astype(np.float32) - {target.zero_point[0]}) * {target.scale[0]!r}"
        )
    return "\n".join([*lines, "print(labels[scores.argmax()], scores.max())"])


def _litert_js(source: Tensor) -> str:
    array = {"uint8": "Uint8Array", "float32": "Float32Array"}[source.dtype]
    shape = ", ".join(map(str, source.shape))
    return _code(f"""
        import {{ loadAndCompile, loadLiteRt, Tensor }} from "@litertjs/core";
        await loadLiteRt("/wasm/");
        const model = await loadAndCompile("model.tflite", {{ accelerator: "wasm" }});
        // pixels: {array} of the bytes R, G, B of every pixel, row by row, without alpha
        const [scores] = await model.run(new Tensor(pixels, [{shape}]));
        console.log(await scores.data());
    """)


def _micro(graph: Graph, source: Tensor, target: Tensor) -> Instruction:
    platform = "Microcontroller, with TFLite Micro"
    if graph.scheme != "int8" or source.shape[0] != 1:
        return Instruction(
            platform,
            "",
            "Export the network with scheme int8, io int8 and batch 1 for a microcontroller.",
        )
    methods = resolver_methods(graph)
    size = int(np.prod(source.shape))
    pixel = "pixels[i] - 128" if source.dtype == "int8" else "pixels[i]"
    scores = f"interpreter.output(0)->{_union(target)}"
    meaning = (
        f", each worth (value - {target.zero_point[0]}) * {target.scale[0]:g}"
        if target.scale
        else ""
    )
    lines = [
        "// xxd -i model.tflite > model.cc, and alignas(16) in front of the array; or, with the",
        "// labels and the size of the arena: keras-resnet export --c-array",
        f"tflite::MicroMutableOpResolver<{len(methods)}> operators;",
        *(f"operators.{method}();" for method in methods),
        "tflite::MicroInterpreter interpreter(",
        "    tflite::GetModel(model_tflite), operators, arena, sizeof(arena));",
        "interpreter.AllocateTensors();",
        f"for (int i = 0; i < {size}; ++i)  // bytes R, G, B, row by row",
        f"  interpreter.input(0)->{_union(source)}[i] = {pixel};",
        "interpreter.Invoke();",
        f"// {scores}: {target.shape[-1]} scores{meaning}",
    ]
    return Instruction(platform, "\n".join(lines))


def resolver_methods(graph: Graph) -> list[str]:
    """What registers a file's operators with TFLite Micro's resolver, e.g. `["AddConv2D"]`.

    Methods of `MicroMutableOpResolver`, each once, in the order of the graph.
    """
    operators = (operator for each in (graph, *graph.others) for operator in each.operators)
    return [f"Add{_micro_name(name)}" for name in dict.fromkeys(op.name for op in operators)]


def _union(tensor: Tensor) -> str:
    """The member of TFLite's data union for a type."""
    return {"float32": "data.f"}.get(tensor.dtype, f"data.{tensor.dtype}")


def _micro_name(operator: str) -> str:
    parts = (part if part[0].isdigit() else part.capitalize() for part in operator.split("_"))
    return _MICRO_NAMES.get(operator, "".join(parts))
