"""What is made from the tables of architectures and recipes is what lies in the tree."""

import inspect

import generate
import pytest

import keras_resnet

REMEDY = "not current: make generate"


def test_the_signatures_for_editors_are_current():
    assert generate.STUB.read_text(encoding="utf-8") == generate.stub(), REMEDY


def test_the_table_of_the_page_is_current():
    page = generate.NETWORKS.read_text(encoding="utf-8")
    assert generate.with_table(page) == page, REMEDY
    assert generate.table() in page


def test_the_recipes_of_the_page_about_training_are_current():
    page = generate.TRAINING.read_text(encoding="utf-8")
    assert generate.with_recipes(page) == page, REMEDY
    assert all(f"**`{name}`**" in page for name in generate.training.RECIPES)


def test_every_network_is_counted():
    names = keras_resnet.list_models()
    assert list(keras_resnet.architecture._all_counts()) == names, REMEDY


# test_models.py builds the others and counts them; ResNet-1202 takes long to build.
def test_the_largest_network_continues_the_line_of_the_others():
    """Depth 6n + 2: from n to n + 1 every CIFAR network grows by the same three blocks."""
    small, large, largest = (
        list(vars(keras_resnet.get_counts(f"resnet{depth}")).values()) for depth in (20, 32, 1202)
    )
    steps = [(b - a) // 2 for a, b in zip(small, large, strict=True)]
    assert largest == [a + (200 - 3) * step for a, step in zip(small, steps, strict=True)]


@pytest.mark.parametrize("builder", sorted(keras_resnet.architecture.BUILDERS))
def test_every_builder_shows_its_full_signature_and_its_source(builder):
    function = getattr(keras_resnet, builder)
    row = keras_resnet.get_architecture(keras_resnet.architecture.BUILDERS[builder])
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:8] == [
        "include_top",
        "weights",
        "input_tensor",
        "input_shape",
        "pooling",
        "classes",
        "classifier_activation",
        "name",
    ]
    assert parameters["name"].default == row.name
    assert parameters["classes"].default == row.classes
    assert parameters["output_stride"].default is None
    help_text = inspect.getdoc(function)
    assert row.source in help_text
    undocumented = [name for name in parameters if f"\n    {name}: " not in f"\n{help_text}"]
    assert undocumented == []
    assert ("grouped" in help_text) == (row.cardinality > 1)
