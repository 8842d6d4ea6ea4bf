"""Inspection of .tflite files: what they hold, what targets refuse, and damaged ones."""

import dataclasses
import functools
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from tflite_files import float_file, int8_file, small
from toys import SMALL

import keras_resnet
from keras_resnet.counting import count
from keras_resnet.export.delegation import partitions, xnnpack_refusal
from keras_resnet.export.flatbuffer import pack, unpack
from keras_resnet.export.graph import WEIGHTED
from keras_resnet.export.inspection import (
    TFLiteFileError,
    arena_bytes,
    inspect,
    multiply_adds,
    read_graph,
)
from keras_resnet.export.metadata import add_metadata
from keras_resnet.export.targets import SEVERITIES, TARGETS, check
from keras_resnet.quiet import held_back_stderr

OPERATORS = sorted(name for name in vars(schema.BuiltinOperator) if name.isupper())
# The kinds that rules look at come as often as all others together.
OPERATORS += [*(WEIGHTED | dict.fromkeys(("QUANTIZE", "DEQUANTIZE", "SOFTMAX", "MUL"))), "PAD"] * 23
LABELS = [f"class {number}" for number in range(10)]
SCHEMES = ("float32", "float16", "dynamic_int8", "int8", "int16x8")


def converted(model, scheme="float32", batch=1, per_channel=True, ends=None):
    """A Keras model by TensorFlow's converter, calibrated on noise."""
    shape = model.input_shape[1:]
    signature = tf.TensorSpec((batch, *shape), name="x")
    network = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in ("int8", "int16x8"):
        noise = np.random.default_rng(0).uniform(0, 1, (8, 1, *shape)).astype(np.float32)
        converter.representative_dataset = lambda: ([x] for x in noise)
        sets = {
            "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            "int16x8": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        }
        converter.target_spec.supported_ops = [sets[scheme]]
        converter._experimental_disable_per_channel_quantization_for_dense_layers = not per_channel
    if ends is not None:
        converter.inference_input_type = converter.inference_output_type = ends
    with held_back_stderr(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="tensorflow")
        return converter.convert()


@functools.cache
def separable(scheme, batch=1):
    """Every kind of convolution, large enough that dynamic quantization touches their weights."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6", name="stem")(x)
    y = keras.layers.Conv2D(160, 1, use_bias=False, name="wide")(y)
    y = keras.layers.ReLU(6)(keras.layers.BatchNormalization()(y))
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = keras.layers.GlobalAveragePooling2D(keepdims=True)(y)
    y = keras.layers.Conv2D(10, 1, name="logits")(y)
    y = keras.layers.Softmax()(keras.layers.Reshape((10,))(y))
    return converted(keras.Model(x, y), scheme, batch)


@functools.cache
def mobile_net():
    """keras.applications' MobileNet: somebody else's network, with an open batch."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=10
    )
    return converted(model, "int8", None)


@functools.cache
def ours(ends="float32"):
    """A small network of ours, in float32 or in int8 with these ends."""
    if ends == "float32":
        return float_file(small())
    return int8_file(small(), {"uint8": tf.uint8, "int8": tf.int8, "8 bits": tf.float32}[ends])


@functools.cache
def dense(scheme="int8", per_channel=True, ends=tf.int8):
    keras.utils.set_random_seed(0)
    x = keras.Input((16,))
    model = keras.Model(x, keras.layers.Dense(8)(x))
    return converted(
        model, scheme, per_channel=per_channel, ends=ends if scheme == "int8" else None
    )


@functools.cache
def convolution(scheme="float32", **options):
    """One convolution, and what is said to follow it."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(4, 3, name="conv")(x)
    if options.get("activation"):
        y = keras.layers.Activation(options["activation"])(y)
    if options.get("pooled"):
        y = keras.layers.AveragePooling2D(2)(y)
    if options.get("softmax"):
        y = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(y))
    return converted(keras.Model(x, y), scheme)


def changed(content, change):
    """The file after `change(model, graph)`, which takes the objects of the flatbuffer."""
    model = unpack(content)
    change(model, model.subgraphs[0])
    return pack(model)


def kinds(content):
    return [op.name for op in read_graph(content).operators]


def interpreter(content):
    made = Interpreter(model_content=content)
    made.allocate_tensors()
    return made


def real_partitions(content):
    """What each piece that XNNPACK runs hands out, by the interpreter's own word."""
    ops = interpreter(content)._get_ops_details()
    return [sorted(map(int, op["outputs"])) for op in ops if op["op_name"] == "DELEGATE"]


def predicted_partitions(content):
    graph = read_graph(content)
    found = []
    for piece in partitions(graph):
        made = {tensor for number in piece for tensor in graph.operators[number].outputs}
        used = {t for t in made if set(graph.consumers.get(t, ())) - set(piece)}
        found.append(sorted(used | made & set(graph.outputs)))
    return found


def rules(content, target):
    """The rules that a target's findings come from, with their severities."""
    return {finding.rule: finding.severity for finding in check(read_graph(content), target)}


def code_of(model, name, custom=None):
    """The number of a kind of operator that the file did not have."""
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name) if isinstance(name, str) else name
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.customCode = custom
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def turned_into(content, number, name, custom=None):
    """The file with one operator turned into another kind."""

    def change(model, graph):
        graph.operators[number].opcodeIndex = code_of(model, name, custom)
        graph.operators[number].builtinOptionsType = 0
        graph.operators[number].builtinOptions = None

    return changed(content, change)


def rescaled(content, kind, factor):
    """The file whose first operator of a kind multiplies its sums by a factor."""
    number = kinds(content).index(kind)

    def change(model, graph):
        x, weights = (graph.tensors[i].quantization for i in graph.operators[number].inputs[:2])
        y = graph.tensors[graph.operators[number].outputs[0]].quantization
        y.scale = np.float32([float(x.scale[0]) * float(max(weights.scale)) / factor])

    return changed(content, change)


@st.composite
def graphs(draw):
    """Whole files of operators and tensors that do not belong together."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], []
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.zeros(4, np.uint8)
    graph.tensors, graph.operators = [], []
    for number in range(draw(st.integers(1, 6))):
        tensor = schema.TensorT()
        tensor.name = f"t{number}".encode()
        tensor.type = draw(st.sampled_from([0, 0, 1, 2, 2, 3, 7, 9, 9, 17, 30]))
        tensor.shape = np.int32(draw(st.lists(st.sampled_from([-1, 0, 1, 1, 3]), max_size=5)))
        is_word = tensor.type in (schema.TensorType.FLOAT32, schema.TensorType.INT32)
        if is_word and np.prod(np.abs(tensor.shape)) == 1:
            tensor.buffer = draw(st.sampled_from([0, 1]))
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.float32(
            draw(st.lists(st.sampled_from([-1, 0, 1e-38, 1, 1e38]), max_size=2))
        )
        graph.tensors.append(tensor)
    indices = st.lists(st.integers(0, len(graph.tensors) - 1), max_size=3)
    optional = st.lists(st.integers(-1, len(graph.tensors) - 1), max_size=4)
    graph.inputs, graph.outputs = draw(indices), draw(indices)
    for name in draw(st.lists(st.sampled_from(OPERATORS), max_size=6)):
        operator = schema.OperatorT()
        operator.opcodeIndex = code_of(model, name)
        operator.inputs, operator.outputs = draw(optional), draw(indices)
        graph.operators.append(operator)
    return pack(model)


class TestSchemes:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_the_scheme_is_the_one_that_was_asked_for(self, scheme):
        assert inspect(separable(scheme)).scheme == scheme

    def test_our_own_files_are_what_they_are(self):
        assert inspect(ours()).scheme == "float32"
        for ends in ("uint8", "int8", "8 bits"):
            assert inspect(ours(ends)).scheme == "int8"

    def test_weights_in_8_bits_that_are_only_widened_are_no_scheme(self):
        def store_in_8_bits(model, graph):
            weights = next(t for t in graph.tensors if t.type == schema.TensorType.FLOAT16)
            weights.type = schema.TensorType.INT8
            half = model.buffers[weights.buffer].data
            model.buffers[weights.buffer].data = half[: len(half) // 2]

        content = convolution("float16")
        assert inspect(content).scheme == "float16"
        assert inspect(changed(content, store_in_8_bits)).scheme == "mixed"


class TestReading:
    def test_tensors_and_operators_are_those_of_the_interpreter(self):
        content = mobile_net()
        graph, real = read_graph(content), Interpreter(model_content=content)
        for tensor, said in zip(graph.tensors, real.get_tensor_details(), strict=False):
            assert (tensor.name, tensor.dtype) == (said["name"], np.dtype(said["dtype"]).name)
            assert tensor.shape == tuple(said["shape_signature"])
            quantization = said["quantization_parameters"]
            np.testing.assert_array_equal(tensor.scale, quantization["scales"])
            np.testing.assert_array_equal(tensor.zero_point, quantization["zero_points"])
            assert tensor.quantized_dimension == quantization["quantized_dimension"]
        ops = [op["op_name"] for op in interpreter(content)._get_ops_details()]
        assert [op.name for op in graph.operators] == [name for name in ops if name != "DELEGATE"]

    def test_an_open_dimension_is_minus_one(self):
        graph = read_graph(separable("float32", None))
        assert graph.tensors[graph.inputs[0]].shape == (-1, 8, 8, 3)

    def test_further_subgraphs_are_read_too(self):
        def twice(model, graph):
            model.subgraphs.append(graph)

        graph = read_graph(changed(dense(), twice))
        assert len(graph.others) == 1
        assert graph.others[0].operators == graph.operators
        assert inspect(changed(dense(), twice)).operators == {"FULLY_CONNECTED": 2}

    def test_foreign_operators_and_types_have_names(self):
        assert kinds(turned_into(dense(), 0, 1000)) == ["UNKNOWN_1000"]
        custom = turned_into(dense(), 0, "CUSTOM", b"FlexErf")
        assert read_graph(custom).operators[0].title == "CUSTOM(FlexErf)"

        def of_another_type(model, graph):
            graph.tensors[graph.outputs[0]].type = 99

        assert inspect(changed(dense(), of_another_type)).to_dict()["outputs"][0]["dtype"] == (
            "unknown_99"
        )

    def test_variable_sparse_and_4_bit_tensors_are_read(self):
        def change(model, graph):
            graph.tensors[graph.inputs[0]].isVariable = True
            weights = graph.tensors[graph.operators[0].inputs[1]]
            weights.type = schema.TensorType.INT4
            data = model.buffers[weights.buffer].data
            model.buffers[weights.buffer].data = data[: len(data) // 2]

        graph = read_graph(changed(dense(), change))
        assert graph.tensors[graph.inputs[0]].is_variable
        weights = graph.tensors[graph.operators[0].inputs[1]]
        assert (weights.dtype, weights.size, weights.nbytes) == ("int4", 64, 64)

        def sparse(model, graph):
            weights = graph.tensors[graph.operators[0].inputs[1]]
            weights.sparsity = schema.SparsityParametersT()
            model.buffers[weights.buffer].data = model.buffers[weights.buffer].data[:5]

        graph = read_graph(changed(dense(), sparse))
        assert graph.tensors[graph.operators[0].inputs[1]].is_sparse

    def test_quantization_without_a_scale_is_none(self):
        def change(model, graph):
            graph.tensors[graph.inputs[0]].quantization.scale = None

        graph = read_graph(changed(dense(), change))
        assert graph.tensors[graph.inputs[0]].scale == ()
        inspect(changed(dense(), change), "xnnpack")

    def test_an_empty_graph_is_read(self):
        def change(model, graph):
            graph.operators, graph.inputs, graph.outputs = [], [], []

        for target in TARGETS:
            assert inspect(changed(dense(), change), target).operators == {}

    def test_it_needs_neither_tensorflow_nor_keras_nor_pillow(self, tmp_path):
        (tmp_path / "dense.tflite").write_bytes(dense())
        script = """
            import sys
            class Refuse:
                def find_spec(self, name, path=None, target=None):
                    if name.split(".")[0] in ("tensorflow", "keras", "tf_keras", "PIL"):
                        raise ModuleNotFoundError(name, name=name)
            sys.meta_path.insert(0, Refuse())
            from keras_resnet.export.inspection import inspect
            for target in ("xnnpack", "tflm", "web", "mediapipe"):
                print(inspect("dense.tflite", target).scheme)
        """
        assert run_python(script, cwd=tmp_path).stdout.split() == ["int8"] * 4


class TestDamagedFiles:
    @pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64, b"\0\0\0\0TFL3", b"PK\3\4" * 9])
    def test_what_is_none_is_refused_with_its_name(self, tmp_path, content):
        (tmp_path / "x.tflite").write_bytes(content)
        for read in (read_graph, inspect):
            with pytest.raises(TFLiteFileError, match=r"x\.tflite"):
                read(tmp_path / "x.tflite")

    def test_it_is_a_value_error_and_a_missing_file_an_os_error(self, tmp_path):
        assert issubclass(TFLiteFileError, ValueError)
        with pytest.raises(FileNotFoundError):
            inspect(tmp_path / "missing.tflite")

    def test_a_truncated_file_is_refused(self):
        content = dense()
        for length in range(0, len(content) - 16, 16):
            with pytest.raises(TFLiteFileError):
                inspect(content[:length])

    @pytest.mark.parametrize("field", ["tensor", "buffer", "code", "shape", "weights", "scale"])
    def test_a_number_that_refers_to_nothing_is_refused(self, field):
        def change(model, graph):
            operator, tensor = graph.operators[0], graph.tensors[0]
            if field == "tensor":
                operator.inputs = [0, 1000, 2]
            elif field == "buffer":
                tensor.buffer = 1000
            elif field == "code":
                operator.opcodeIndex = 1000
            elif field == "shape":
                tensor.shape = np.int32([1, -7])
            elif field == "weights":
                weights = graph.tensors[operator.inputs[1]]
                model.buffers[weights.buffer].data = model.buffers[weights.buffer].data[:-1]
            else:
                tensor.quantization.scale = np.float32([np.nan])

        with pytest.raises(TFLiteFileError, match="damaged"):
            inspect(changed(dense(), change))

    @given(data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_whatever_is_in_a_file_there_is_one_error(self, data):
        content = bytearray(data.draw(st.sampled_from([dense(), convolution("float16")])))
        for _ in range(data.draw(st.integers(1, 12))):
            # Half of them where the structure lies and not the weights: offsets are 4 bytes.
            at = 4 * data.draw(st.integers(0, len(content) // 4 - 1))
            content[at : at + 4] = data.draw(
                st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
                | st.binary(min_size=4, max_size=4)
                | st.integers(0, 31).map(
                    lambda bit, at=at: (
                        int.from_bytes(content[at : at + 4], "little") ^ 1 << bit
                    ).to_bytes(4, "little")
                )
            )
        content[4:8] = b"TFL3"
        cut = data.draw(st.none() | st.integers(0, len(content)))
        try:
            found = inspect(bytes(content[:cut]), data.draw(st.sampled_from(TARGETS)))
        except TFLiteFileError:
            return
        assert str(found)
        json.dumps(found.to_dict(), allow_nan=False)

    @given(content=graphs())
    @settings(max_examples=200, deadline=None)
    def test_graphs_that_no_converter_makes_are_described_or_refused(self, content):
        for target in TARGETS:
            try:
                found = inspect(content, target)
            except TFLiteFileError:
                return
            assert str(found)
            json.dumps(found.to_dict(), allow_nan=False)

    @given(content=st.binary(max_size=400))
    @settings(max_examples=100, deadline=None)
    def test_random_bytes_are_refused(self, content):
        with pytest.raises(TFLiteFileError):
            inspect(content[:4] + b"TFL3" + content[4:])

    def test_a_file_that_refers_to_the_same_places_again_and_again_is_refused(self):
        """5,000 times the same subgraph, each with 5,000 times the same tensor: 40 kB."""
        count = 5000

        def vector(at, target):
            entries = at + 4 + 4 * np.arange(count)
            return np.uint32([count, *(target - entries)]).tobytes()

        of_subgraphs = 36
        subgraph = of_subgraphs + 4 + 4 * count
        of_tensors = subgraph + 16
        tensor = of_tensors + 4 + 4 * count
        buffers = tensor + 8
        content = b"".join(
            [
                np.uint32([24]).tobytes() + b"TFL3",
                # The model's third field, subgraphs, and its fifth, buffers.
                np.uint16([14, 12, 0, 0, 4, 0, 8, 0]).tobytes(),
                np.int32([24 - 8, of_subgraphs - 28, buffers - 32]).tobytes(),
                vector(of_subgraphs, subgraph + 8),
                # A subgraph's first field, tensors.
                np.uint16([6, 8, 4, 0]).tobytes()
                + np.int32([8, of_tensors - subgraph - 12]).tobytes(),
                vector(of_tensors, tensor + 4),
                np.uint16([4, 4]).tobytes() + np.int32([4]).tobytes(),  # a tensor of defaults
                np.uint32([1, 8]).tobytes() + np.uint16([4, 4]).tobytes() + np.int32([4]).tobytes(),
            ]
        )
        with pytest.raises(TFLiteFileError, match="again and again"):
            inspect(content)


class TestContents:
    @pytest.mark.parametrize(
        "options",
        [{}, {"block": "bottleneck", "cardinality": 4, "base_width": 128}, {"attention": "se"}],
    )
    def test_multiply_adds_are_those_of_the_network(self, options):
        model = keras_resnet.create_model(dataclasses.replace(SMALL, shortcut="B", **options))
        expected = sum(stage.multiply_adds for stage in count(model))
        assert inspect(converted(model)).multiply_adds == expected

    def test_multiply_adds_of_single_layers(self):
        layers = keras.layers
        for layer, expected in [
            (layers.Conv2D(6, 3, padding="same"), 8 * 8 * 6 * 9 * 4),
            (layers.Conv2D(6, 3, strides=2, padding="same", groups=2), 4 * 4 * 6 * 9 * 2),
            (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 8 * 8 * 8 * 9),
            (layers.Conv2DTranspose(6, 3, strides=2, padding="same"), 8 * 8 * 4 * 9 * 6),
            (layers.Dense(5), 8 * 8 * 4 * 5),
        ]:
            x = keras.Input((8, 8, 4))
            graph = read_graph(converted(keras.Model(x, layer(x))))
            assert sum(multiply_adds(graph, op) for op in graph.operators) == expected

    def test_a_product_of_activations_counts(self):
        x, y = keras.Input((3, 5), batch_size=1), keras.Input((7, 5), batch_size=1)
        model = keras.Model([x, y], keras.layers.Dot(axes=2)([x, y]))
        function = tf.function(lambda a, b: model([a, b]))
        specs = [tf.TensorSpec((1, 3, 5)), tf.TensorSpec((1, 7, 5))]
        content = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function(*specs)]
        ).convert()
        assert "BATCH_MATMUL" in kinds(content)
        assert inspect(content).multiply_adds == 3 * 7 * 5

    @pytest.mark.parametrize("scheme", ["float32", "float16", "int8"])
    def test_layers_hold_what_the_file_holds(self, scheme):
        found = inspect(separable(scheme))
        buffers = {t.buffer: t.size for t in found.graph.tensors if t.is_constant}
        assert sum(layer.size for layer in found.layers) == sum(buffers.values())
        sizes = [layer.size for layer in found.layers]
        assert sizes == sorted(sizes, reverse=True)
        assert sum(layer.multiply_adds for layer in found.layers) == found.multiply_adds
        assert {layer.multiply_adds for layer in found.layers if "logits" in layer.name} == {1600}

    @pytest.mark.parametrize(("name", "head"), [("resnet8", 196_608), ("resnet20", 270_592)])
    def test_the_arena_is_what_tflite_micro_asks_for(self, name, head):
        """The heads that the interpreter of tflite-micro 0.dev20261023182759 reports."""
        content = float_file(keras_resnet.create_model(name))
        assert inspect(content).arena_bytes == head

    def test_the_arena_of_a_chain_is_its_widest_step(self):
        # (8, 8, 3) to (6, 6, 4) in float32; each rounded up to 16 bytes.
        assert arena_bytes(read_graph(convolution())) == 8 * 8 * 3 * 4 + 6 * 6 * 4 * 4

    def test_it_reads_as_text_and_as_json(self, tmp_path):
        (tmp_path / "m.tflite").write_bytes(mobile_net())
        found = inspect(tmp_path / "m.tflite", "web")
        text = str(found)
        assert text.startswith(f"{tmp_path / 'm.tflite'}: int8, ")
        assert "15 CONV_2D, 13 DEPTHWISE_CONV_2D" in text
        said = json.loads(json.dumps(found.to_dict()))
        assert said["operators"]["DEPTHWISE_CONV_2D"] == 13
        assert said["scheme"] == "int8"
        assert said["target"] == "web"
        assert len(said["tensors"]) == len(found.graph.tensors)
        assert len(said["xnnpack"]["partitions"]) == len(real_partitions(mobile_net()))


class TestDelegation:
    """What XNNPACK takes, predicted and as the interpreter says it after it was applied."""

    @pytest.mark.parametrize("batch", [1, None])
    @pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_int8", "int8"])
    def test_every_kind_of_convolution(self, scheme, batch):
        content = separable(scheme, batch)
        assert predicted_partitions(content) == real_partitions(content)

    def test_a_network_of_keras_applications(self):
        assert predicted_partitions(mobile_net()) == real_partitions(mobile_net())

    def test_our_own(self):
        for ends in ("float32", "uint8", "int8", "8 bits"):
            content = ours(ends)
            assert predicted_partitions(content) == real_partitions(content)
            # A DEQUANTIZE behind the 8-bit softmax makes a second piece.
            assert len(partitions(read_graph(content))) == (2 if ends == "8 bits" else 1)

    @pytest.mark.parametrize("scheme", ["float32", "int8"])
    def test_other_layers(self, scheme):
        for options in ({"pooled": True}, {"softmax": True}, {"activation": "hard_swish"}):
            content = convolution(scheme, **options)
            assert predicted_partitions(content) == real_partitions(content)

    def test_16_bit_activations_are_left(self):
        content = separable("int16x8")
        assert partitions(read_graph(content)) == ()
        assert real_partitions(content) == []

    @pytest.mark.parametrize("factor", [1e-4, 1.0, 200.0, 255.9, 256.1, 1e4])
    def test_additions_are_left_where_scales_are_far_apart(self, factor):
        content = ours("uint8")
        number = len(kinds(content)) - 1 - kinds(content)[::-1].index("ADD")

        def change(model, graph):
            x, y = (
                graph.tensors[i].quantization
                for i in (graph.operators[number].inputs[0], graph.operators[number].outputs[0])
            )
            y.scale = np.float32([float(x.scale[0]) / factor])

        content = changed(content, change)
        if "requantization-factor" in rules(content, "xnnpack"):
            with pytest.raises(RuntimeError, match="XNNPACK"):
                interpreter(content)
        else:
            assert predicted_partitions(content) == real_partitions(content)

    def test_reasons_are_given(self):
        graph = read_graph(convolution("int8", pooled=True))
        pooling = next(op for op in graph.operators if op.name == "AVERAGE_POOL_2D")
        assert "float32 only" in xnnpack_refusal(graph, pooling)
        assert len(partitions(graph)) == 2


class TestRules:
    def test_a_target_that_there_is_not_is_refused(self):
        with pytest.raises(ValueError, match="must be one of"):
            inspect(dense(), "toaster")

    def test_findings_say_everything_and_come_worst_first(self):
        for target in TARGETS:
            found = check(read_graph(separable("dynamic_int8", None)), target)
            order = [SEVERITIES.index(finding.severity) for finding in found]
            assert order == sorted(order)
            for finding in found:
                assert len(finding.text) > 20
                assert "measured" in finding.source or finding.source.startswith("https://")

    @pytest.mark.parametrize("kind", ["CONV_2D", "FULLY_CONNECTED"])
    def test_requantization_factors_from_256_are_refused_as_by_xnnpack(self, kind):
        content = ours("uint8")
        below, above = rescaled(content, kind, 255.9), rescaled(content, kind, 256.1)
        assert "requantization-factor" not in rules(below, "xnnpack")
        interpreter(below)
        for target in ("xnnpack", "web", "mediapipe"):
            assert rules(above, target)["requantization-factor"] == "refused"
        assert "requantization-factor" not in rules(above, "tflm")
        with pytest.raises(RuntimeError, match="XNNPACK"):
            interpreter(above)

    def test_a_padding_that_rescales_is_refused_as_by_xnnpack(self):
        content = ours("uint8")
        number = kinds(content).index("PAD")

        def rescale(model, graph):
            y = graph.tensors[graph.operators[number].outputs[0]].quantization
            y.scale = np.float32(y.scale) * 2

        assert "padding-scale" not in rules(content, "xnnpack")
        assert rules(changed(content, rescale), "xnnpack")["padding-scale"] == "refused"
        with pytest.raises(RuntimeError, match="PAD"):
            interpreter(changed(content, rescale))

    def test_flex_operators_are_refused_as_by_litert(self):
        content = turned_into(dense(), 0, "CUSTOM", b"FlexErf")
        with pytest.raises(RuntimeError, match="Select TensorFlow op"):
            interpreter(content)
        for target in TARGETS:
            assert rules(content, target)["flex-operator"] == "refused"
            assert "flex-operator" not in rules(dense(), target)

    def test_custom_and_unknown_operators_are_refused_as_by_litert(self):
        for name, custom, rule in [
            ("CUSTOM", b"Mine", "custom-operator"),
            (1000, None, "unknown-operator"),
        ]:
            content = turned_into(dense(), 0, name, custom)
            with pytest.raises((RuntimeError, ValueError)):
                interpreter(content)
            for target in TARGETS:
                assert rules(content, target)[rule] == "refused"
                assert rule not in rules(dense(), target)

    def test_custom_operators_that_come_with_a_target_are_not_refused(self):
        detection = turned_into(dense(), 0, "CUSTOM", b"TFLite_Detection_PostProcess")
        sound = turned_into(dense(), 0, "CUSTOM", b"Mfcc")
        for target in TARGETS:
            assert "custom-operator" not in rules(detection, target)
            assert ("custom-operator" in rules(sound, target)) == (target == "tflm")

    def test_an_open_batch_is_refused_in_a_browser_and_noted_elsewhere(self):
        open_, fixed = separable("float32", None), separable("float32")
        for target in TARGETS:
            assert "dynamic-batch" not in rules(fixed, target)
            expected = "refused" if target == "web" else "note"
            assert rules(open_, target)["dynamic-batch"] == expected

    def test_a_graph_in_several_pieces_is_slow(self):
        pooled, whole = convolution("int8", pooled=True), ours("int8")
        for target in ("xnnpack", "web", "mediapipe"):
            assert rules(pooled, target)["not-delegated"] == "slow"
            assert "not-delegated" not in rules(whole, target) or (
                rules(whole, target)["not-delegated"] == "note"
            )
        assert rules(separable("int16x8"), "xnnpack")["not-delegated"] == "slow"
        assert "not-delegated" not in rules(pooled, "tflm")

    def test_operators_that_tflite_micro_lacks_are_refused(self):
        assert rules(turned_into(dense(), 0, "UNIQUE"), "tflm")["missing-operator"] == "refused"
        for scheme in ("float32", "int8"):
            assert "missing-operator" not in rules(separable(scheme), "tflm")

    def test_weights_that_tflite_micro_cannot_use_are_refused(self):
        assert rules(separable("dynamic_int8"), "tflm")["hybrid-weights"] == "refused"
        assert rules(separable("float16"), "tflm")["float16-weights"] == "refused"
        for scheme in ("float32", "int8"):
            found = check(read_graph(separable(scheme)), "tflm")
            assert not [finding for finding in found if finding.severity == "refused"]

    def test_dense_weights_per_channel_are_noted_for_microcontrollers(self):
        rule = "per-channel-fully-connected"
        assert rules(dense(), "tflm")[rule] == "note"
        assert rule not in rules(dense(per_channel=False), "tflm")
        assert rule not in rules(dense(), "xnnpack")
        assert len(real_partitions(dense())) == 1

    def test_a_float_island_is_slow(self):
        content = ours("uint8")
        assert "float-island" not in rules(content, "xnnpack")
        number = kinds(content).index("MEAN")

        def in_float(model, graph):
            """MEAN in float32, between a DEQUANTIZE and a QUANTIZE."""
            operator = graph.operators[number]
            ends = {}
            for role, index in (("x", operator.inputs[0]), ("y", operator.outputs[0])):
                copy = schema.TensorT()
                copy.shape, copy.type = graph.tensors[index].shape, schema.TensorType.FLOAT32
                copy.name = role.encode()
                graph.tensors.append(copy)
                ends[role] = len(graph.tensors) - 1
            before, behind = schema.OperatorT(), schema.OperatorT()
            before.opcodeIndex = code_of(model, "DEQUANTIZE")
            behind.opcodeIndex = code_of(model, "QUANTIZE")
            before.inputs, before.outputs = [int(operator.inputs[0])], [ends["x"]]
            behind.inputs, behind.outputs = [ends["y"]], [int(operator.outputs[0])]
            operator.inputs = [ends["x"], int(operator.inputs[1])]
            operator.outputs = [ends["y"]]
            graph.operators[number : number + 1] = [before, operator, behind]

        island = changed(content, in_float)
        interpreter(island)  # it is a graph that runs
        assert inspect(island).scheme == "mixed"
        for target in TARGETS:
            assert rules(island, target)["float-island"] == "slow"
        finding = next(f for f in check(read_graph(island), "tflm") if f.rule == "float-island")
        assert finding.where == ("MEAN y",)

    def test_batch_normalization_that_was_not_folded_is_slow(self):
        rule = "unfolded-batch-normalization"
        assert rule not in rules(separable("float32"), "xnnpack")
        assert rule not in rules(ours(), "xnnpack")

        def unfold(model, graph):
            scale = schema.TensorT()
            y = graph.tensors[graph.operators[0].outputs[0]]
            channels = int(y.shape[-1])
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ones(channels, np.float32).tobytes(), np.uint8)
            model.buffers.append(buffer)
            scale.shape, scale.type = np.int32([channels]), schema.TensorType.FLOAT32
            scale.name, scale.buffer = b"gamma", len(model.buffers) - 1
            product = schema.TensorT()
            product.shape, product.type, product.name = y.shape, y.type, b"normalized"
            graph.tensors += [scale, product]
            multiply = schema.OperatorT()
            multiply.opcodeIndex = code_of(model, "MUL")
            multiply.builtinOptionsType = schema.BuiltinOptions.MulOptions
            multiply.builtinOptions = schema.MulOptionsT()
            multiply.inputs = [int(graph.operators[0].outputs[0]), len(graph.tensors) - 2]
            multiply.outputs = [len(graph.tensors) - 1]
            graph.operators.insert(1, multiply)
            graph.outputs = multiply.outputs

        content = changed(convolution(), unfold)
        interpreter(content)
        for target in TARGETS:
            assert rules(content, target)[rule] == "slow"
            assert rule not in rules(convolution(), target)

    def test_probabilities_in_8_bits_are_noted(self):
        for target in TARGETS:
            assert rules(convolution("int8", softmax=True), target)["8-bit-softmax"] == "note"
            assert "8-bit-softmax" not in rules(convolution(softmax=True), target)

    def test_8_bit_ends_are_refused_by_browsers_and_mediapipe(self):
        int8, uint8 = ours("int8"), ours("uint8")
        for target in ("web", "mediapipe"):
            assert rules(int8, target)["input-output-type"] == "refused"
            assert "input-output-type" not in rules(uint8, target)
        for target in ("xnnpack", "tflm"):
            assert "input-output-type" not in rules(int8, target)

    def test_mediapipe_asks_for_metadata(self):
        content = ours()
        assert rules(content, "mediapipe")["metadata"] == "refused"
        assert "metadata" not in rules(content, "xnnpack")
        complete = add_metadata(content, LABELS, name="small", description="of the tests")
        assert not {"metadata", "labels"} & set(rules(complete, "mediapipe"))
        assert not inspect(complete, "mediapipe").is_refused
        # uint8 images need none, but classes are numbers then.
        assert "metadata" not in rules(ours("uint8"), "mediapipe")
        assert rules(ours("uint8"), "mediapipe")["labels"] == "note"

    def test_mediapipe_feeds_one_image_of_raw_bytes(self):
        def of_two(model, graph):
            graph.tensors[graph.inputs[0]].shape = np.int32([2, 32, 32, 3])
            graph.tensors[graph.inputs[0]].shapeSignature = None

        def of_raw_bytes(model, graph):
            quantization = graph.tensors[graph.inputs[0]].quantization
            quantization.scale, quantization.zeroPoint = np.float32([1]), np.int64([0])

        assert rules(dense("float32"), "mediapipe")["one-image"] == "refused"
        assert rules(changed(ours("uint8"), of_two), "mediapipe")["one-image"] == "refused"
        assert "one-image" not in rules(ours("uint8"), "mediapipe")
        assert rules(ours("uint8"), "mediapipe")["input-scale"] == "note"
        raw = changed(ours("uint8"), of_raw_bytes)
        assert "input-scale" not in rules(raw, "mediapipe")

    def test_metadata_that_cannot_be_read_are_as_good_as_none(self):
        graph = read_graph(add_metadata(ours(), LABELS, name="small", description="of the tests"))
        graph.metadata["TFLITE_METADATA"] = b"\xff" * 20
        assert [f.severity for f in check(graph, "mediapipe") if f.rule == "metadata"]
