"""The C++ source of a file, by what a compiler and TFLite Micro's interpreter make of it."""

import importlib.metadata
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.schema_py_generated import BuiltinOperator
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import run_python
from tflite_files import float_file, int8_file, noise, small
from tflite_micro.python.tflite_micro import runtime
from toys import warmed

import keras_resnet
from keras_resnet import export
from keras_resnet.export import flatbuffer
from keras_resnet.export.c_array import write_c_array
from keras_resnet.export.metadata import add_metadata

EXAMPLE = Path(__file__).parent.parent / "examples" / "micro" / "main.cc"
LABELS = ("plane", 'the "car"', "b\\n", "čáp", "why??/", "%s", "7up", "dog\t", "☃", "\x7f")
pytestmark = pytest.mark.filterwarnings(
    "ignore::keras_resnet.export.calibration.CalibrationWarning"
)

# What TFLite Micro's headers declare, as far as the example asks: the signatures are those of
# micro_interpreter.h and micro_mutable_op_resolver.h. Behind them stands the C++ of the Python
# package, whose symbols are public; its resolver knows all operators.
HEADERS = {
    "schema/schema_generated.h": """
        #pragma once
        #include <cstdint>
        namespace tflite {
        struct Model;
        inline const Model* GetModel(const void* file) {  // the root's offset comes first
          return reinterpret_cast<const Model*>(
              static_cast<const char*>(file) + *static_cast<const std::uint32_t*>(file));
        }
        }
    """,
    "micro/micro_mutable_op_resolver.h": """
        #pragma once
        enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
        namespace tflite {
        class PythonOpsResolver {
         public:
          PythonOpsResolver();
          alignas(16) char memory[1 << 17];
        };
        namespace micro {
        struct MicroOpResolver;
        template <unsigned int kCount>
        class MicroMutableOpResolver {
         public:
          operator const MicroOpResolver&() const {
            return reinterpret_cast<const MicroOpResolver&>(all_);
          }
          TfLiteStatus AddConv2D() { return Add(); }
          TfLiteStatus AddAdd() { return Add(); }
          TfLiteStatus AddMean() { return Add(); }
          TfLiteStatus AddFullyConnected() { return Add(); }
          TfLiteStatus AddSoftmax() { return Add(); }

         private:
          TfLiteStatus Add() { return ++added_ <= kCount ? kTfLiteOk : kTfLiteError; }
          PythonOpsResolver all_;
          unsigned int added_ = 0;
        };
        }
        }
    """,
    "micro/micro_interpreter.h": """
        #pragma once
        #include <cstddef>
        #include <cstdint>
        #include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
        struct TfLiteTensor {
          char quantization[24];
          union { std::int8_t* int8; } data;
        };
        namespace tflite {
        struct Model;
        namespace micro {
        struct MicroResourceVariables;
        struct MicroProfilerInterface;
        class MicroInterpreter {
         public:
          MicroInterpreter(const Model* model, const MicroOpResolver& op_resolver,
                           std::uint8_t* tensor_arena, std::size_t tensor_arena_size,
                           MicroResourceVariables* resource_variables = nullptr,
                           MicroProfilerInterface* profiler = nullptr,
                           bool preserve_all_tensors = false);
          ~MicroInterpreter();
          TfLiteStatus AllocateTensors();
          TfLiteStatus Invoke();
          TfLiteTensor* input(std::size_t index);
          TfLiteTensor* output(std::size_t index);

         private:
          alignas(16) char memory_[1 << 14];
        };
        }
        }
    """,
}


def compile_(*arguments, standard="c++17"):
    strict = ("-Wall", "-Wextra", "-Werror", "-pedantic", f"-std={standard}")
    done = subprocess.run(
        ["g++", *strict, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def output_of(program):
    return subprocess.run([program], capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model("resnet8", class_names=LABELS)
    warmed(model, model.preprocessing(noise(8)))
    path = tmp_path_factory.mktemp("bundles") / "resnet8"
    return export.to_tflite(model, path, "int8", io="int8", calibration=noise(8), max_drop=1)


@pytest.fixture(scope="module")
def array(bundle, tmp_path_factory):
    return write_c_array(bundle, tmp_path_factory.mktemp("c_array"))


@pytest.fixture(scope="module")
def facts(bundle, array):
    """What a program that is linked with the array and with another one says of it, by name."""
    directory = array.header.parent
    write_c_array(bundle.model_path, directory, name="other_2")
    program = directory / "facts.cc"
    program.write_text(
        r"""
        #include <cstdint>
        #include <cstdio>
        #include "model.h"
        #include "other_2.h"
        int main() {
          std::printf("alignment %d\n", static_cast<int>(
              reinterpret_cast<std::uintptr_t>(g_model) % 16));
          std::printf("input %d %d %d %d\n", model::kInputHeight, model::kInputWidth,
                      model::kInputChannels, model::kInputSize);
          std::printf("input_scale %.9g %d\n", model::kInputScale, model::kInputZeroPoint);
          std::printf("output_scale %.9g %d\n", model::kOutputScale, model::kOutputZeroPoint);
          std::printf("classes %d\n", model::kClasses);
          std::printf("arena %zu\n", model::kArenaSize);
          std::printf("other %d %zu %s\n", g_other_2_size == g_model_size,
                      other_2::kArenaSize, other_2::kLabels[0]);
          std::fputs("file\n", stdout);
          std::fwrite(g_model, 1, g_model_size, stdout);
        }
        """
    )
    compile_(program, array.source, directory / "other_2.cc", "-o", directory / "facts")
    text, content = output_of(directory / "facts").split(b"file\n", 1)
    lines = (line.split() for line in text.decode().splitlines())
    return {name: values for name, *values in lines} | {"content": content}


def test_the_linked_array_is_the_file_and_aligned(bundle, facts):
    assert facts["content"] == bundle.model_path.read_bytes()
    assert facts["alignment"] == ["0"]


def test_the_constants_are_those_of_the_file(bundle, array, facts):
    source, (target,) = bundle.manifest["input"], bundle.manifest["outputs"]
    assert facts["input"] == ["32", "32", "3", "3072"]
    for end, described in (("input_scale", source), ("output_scale", target)):
        scale, zero_point = facts[end]
        assert np.float32(scale) == np.float32(described["scale"])
        assert int(zero_point) == described["zero_point"]
    assert facts["classes"] == ["10"]
    assert facts["arena"] == [str(array.arena_bytes)]


def test_two_networks_go_into_one_program(array, facts):
    assert facts["other"] == ["1", str(array.arena_bytes), LABELS[0]]


def test_tflite_micro_runs_the_linked_array_in_that_arena_and_in_no_smaller_one(array, facts):
    assert array.is_measured
    assert array.arena_bytes % 16 == 0
    interpreter = runtime.Interpreter.from_bytes(facts["content"], arena_size=array.arena_bytes)
    interpreter.set_input(noise(1).view(np.int8), 0)
    interpreter.invoke()
    assert interpreter.get_output(0).shape == (1, 10)
    with pytest.raises(RuntimeError, match="allocate"):
        runtime.Interpreter.from_bytes(facts["content"], arena_size=array.arena_bytes - 16)


def test_without_the_interpreter_the_arena_is_planned_large_enough(
    bundle, array, tmp_path, monkeypatch
):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    planned = write_c_array(bundle, tmp_path)
    assert not planned.is_measured
    assert array.arena_bytes <= planned.arena_bytes < 1.1 * array.arena_bytes
    assert "planned, not measured" in planned.header.read_text()
    assert "planned" not in array.header.read_text()


def test_the_example_runs_in_tflite_micro_with_that_arena(bundle, array, tmp_path):
    for name, text in HEADERS.items():
        header = tmp_path / "tensorflow" / "lite" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)
    library, directory = tmp_path / "example.so", array.header.parent
    includes = ("-I", tmp_path, "-I", directory)
    compile_("-shared", "-fPIC", *includes, EXAMPLE, array.source, "-o", library)
    pixels = noise(3)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    done = run_python(
        """
        import ctypes, os, sys
        os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
        sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
        from tflite_micro.python.tflite_micro import _runtime
        raise SystemExit(ctypes.CDLL(sys.argv[2]).main())
        """,
        str(tmp_path / "pixels"),
        str(library),
    )
    interpreter = runtime.Interpreter.from_file(str(bundle.model_path))
    expected = []
    for image in pixels:
        interpreter.set_input((image ^ 0x80).view(np.int8)[None], 0)
        interpreter.invoke()
        (scores,) = interpreter.get_output(0).astype(int)
        percent = int((scores.max() + 128) / 256 * 100 + 0.5)
        expected.append(f"{LABELS[scores.argmax()]} {percent}%")
    assert done.stdout.splitlines() == expected


def is_label(text):
    return "\0" not in text and text.splitlines() == [text]


ANY_LABEL = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    st.text('"\\?/%0127afx\t\x7fé☃', min_size=1),
).filter(is_label)


@settings(max_examples=6, deadline=None)
@given(labels=st.lists(ANY_LABEL, min_size=10, max_size=10))
@example(labels=list(LABELS))
def test_any_label_comes_back_from_the_compiler(bundle, tmp_path_factory, labels):
    directory = tmp_path_factory.mktemp("labels")
    content = add_metadata(bundle.model_path.read_bytes(), labels, name="n", description="d")
    (directory / "model.tflite").write_bytes(content)
    array = write_c_array(directory / "model.tflite", directory)
    program = directory / "labels.cc"
    program.write_text(
        r"""
        #include <cstdio>
        #include <cstring>
        #include "model.h"
        int main() {
          for (const char* label : model::kLabels) std::fwrite(label, 1, std::strlen(label) + 1,
                                                               stdout);
        }
        """
    )
    # C++14 still reads ??/ as a backslash.
    compile_(program, array.source, "-o", directory / "labels", standard="c++14")
    *found, rest = output_of(directory / "labels").split(b"\0")
    assert [label.decode() for label in found] == labels
    assert rest == b""


def test_the_same_file_gives_the_same_sources(bundle, array, tmp_path):
    again = write_c_array(bundle.path, tmp_path)
    assert again.header.read_bytes() == array.header.read_bytes()
    assert again.source.read_bytes() == array.source.read_bytes()


def test_a_label_that_c_would_cut_off_is_refused(bundle, tmp_path):
    labels = ["a\0b", *LABELS[1:]]
    content = add_metadata(bundle.model_path.read_bytes(), labels, name="n", description="d")
    (tmp_path / "model.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="zero byte"):
        write_c_array(tmp_path / "model.tflite", tmp_path)


@pytest.mark.parametrize("name", ["", "7", "a b", "a__b", "_a", "a_", "class", "ä", "../model"])
def test_a_name_that_is_none_in_cpp_is_refused(bundle, tmp_path, name):
    with pytest.raises(ValueError, match="`name` must be an identifier"):
        write_c_array(bundle, tmp_path, name=name)
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_replaced_only_with_force(bundle, tmp_path):
    (tmp_path / "model.cc").write_text("mine")
    with pytest.raises(FileExistsError):
        write_c_array(bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.cc"]
    write_c_array(bundle, tmp_path, force=True)
    assert "g_model[]" in (tmp_path / "model.cc").read_text()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: float_file(small()), "float32, .*float32"),
        (lambda: int8_file(small(), tf.float32), "int8, .*float32"),
        (lambda: int8_file(small(), tf.int8, batch=2), r"int8, x int8 \(2, 32"),
    ],
    ids=["float32", "float ends", "batch 2"],
)
def test_another_kind_of_file_is_refused_with_what_to_export(tmp_path, make, told):
    (tmp_path / "a.tflite").write_bytes(make())
    with pytest.raises(ValueError, match=f"io 'int8', batch 1.*Received: {told}"):
        write_c_array(tmp_path / "a.tflite", tmp_path)


def test_a_file_of_raw_bytes_is_taken_as_well(tmp_path):
    (tmp_path / "a.tflite").write_bytes(int8_file(small(), tf.uint8))
    header = write_c_array(tmp_path / "a.tflite", tmp_path).header.read_text()
    assert "one image, its bytes 0..255, row by row" in header
    assert "resolver.AddQuantize() == 0" in header
    assert "Output: uint8" in header
    assert '"class 9"' in (tmp_path / "model.cc").read_text()


def test_what_tflite_micro_has_no_kernel_for_is_refused(bundle, tmp_path):
    model = flatbuffer.unpack(bundle.model_path.read_bytes())
    for code in model.operatorCodes:
        if code.builtinCode == BuiltinOperator.MEAN:
            code.builtinCode = code.deprecatedBuiltinCode = BuiltinOperator.TILE
    (tmp_path / "a.tflite").write_bytes(flatbuffer.pack(model))
    with pytest.raises(ValueError, match=r"missing-operator(.|\n)*TILE"):
        write_c_array(tmp_path / "a.tflite", tmp_path)
