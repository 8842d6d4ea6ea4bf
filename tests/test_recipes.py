"""Recipes: their fields, their changes, and the learning rate at every step."""

import dataclasses
import itertools
import json
import math

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_resnet import data, training
from keras_resnet.training import RECIPES, Recipe


def rates(recipe, steps_per_epoch, steps):
    """The learning rate at each of the steps."""
    schedule = recipe.learning_rate_schedule(steps_per_epoch)
    # A constant rate is a plain number, so that callbacks may change it.
    is_plain = recipe.schedule == "constant" and not recipe.warmup_epochs
    assert isinstance(schedule, float) == is_plain
    return [schedule if is_plain else float(schedule(step)) for step in steps]


def close(value):
    """Schedules are computed in float32, whose rounding is 6e-8 of a value."""
    return pytest.approx(value, rel=1e-5)


# The table


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_where_it_comes_from(name):
    assert RECIPES[name].source


def test_a_recipe_is_had_by_its_name_and_passes_as_it_is():
    assert training.get_recipe("digits") is RECIPES["digits"]
    recipe = Recipe(epochs=3)
    assert training.get_recipe(recipe) is recipe


@pytest.mark.parametrize("name", ["digit", "", None])
def test_an_unknown_recipe_is_refused_with_those_that_there_are(name):
    with pytest.raises(
        ValueError, match=r"`recipe`.*'digits'.*'paper-cifar'.*Received: "
    ) as raised:
        training.get_recipe(name)
    assert str(raised.value).endswith(f"Received: {name!r}")


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3


def test_the_recipe_of_the_paper_is_that_of_section_4_2():
    recipe = RECIPES["paper-cifar"]
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (128, 0.9, 1e-4)
    assert not recipe.nesterov
    assert recipe.augment == ("pad-crop", "flip")
    # 45,000 training images make 351 steps an epoch, 50,000 make 390: about 64,000 steps.
    assert abs(recipe.epochs * 390 - 64_000) < 390


# Changes


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("epochs=5", "epochs", 5),
        ("learning_rate=0.05", "learning_rate", 0.05),
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("schedule=step", "schedule", "step"),
        ("schedule='step'", "schedule", "step"),
        ("nesterov=true", "nesterov", True),
        ("nesterov=True", "nesterov", True),
        ("nesterov=false", "nesterov", False),
        ("augment=flip,pad-crop", "augment", ("flip", "pad-crop")),
        ("augment=flip", "augment", ("flip",)),
        ("augment=", "augment", ()),
        ("milestones=0.25,0.5", "milestones", (0.25, 0.5)),
        ("milestones=0.5", "milestones", (0.5,)),
        ("batch_size = 64", "batch_size", 64),
        ("warmup_epochs=0.5", "warmup_epochs", 0.5),
    ],
)
def test_a_field_can_be_changed_as_on_the_command_line(change, field, value):
    before = Recipe(nesterov=change.endswith("false"))
    after = before.replace([change])
    assert getattr(after, field) == value
    assert type(getattr(after, field)) is type(value)
    assert after == dataclasses.replace(before, **{field: value})


def test_changes_may_be_strings_a_mapping_or_keywords():
    changed = Recipe(epochs=5, batch_size=64)
    assert Recipe().replace(["epochs=5", "batch_size=64"]) == changed
    assert Recipe().replace({"epochs": 5, "batch_size": 64}) == changed
    assert Recipe().replace(epochs=5, batch_size=64) == changed
    assert Recipe().replace(["epochs=7"], epochs=5, batch_size=64) == changed
    assert Recipe().replace() == Recipe()


@pytest.mark.parametrize(
    ("field", "nearest"),
    [("epoch", "epochs"), ("learning_rat", "learning_rate"), ("Augment", "augment")],
)
def test_an_unknown_field_is_refused_with_the_nearest(field, nearest):
    for change in ({field: 5}, [f"{field}=5"]):
        with pytest.raises(ValueError, match=f"no field '{field}'; did you mean '{nearest}'"):
            Recipe().replace(change)


def test_a_field_that_is_like_none_is_refused_with_all():
    with pytest.raises(
        ValueError, match=r"no field 'zzz'; it has \['name', 'epochs', .*'result'\]"
    ):
        Recipe().replace(zzz=1)


def test_from_dict_refuses_what_a_recipe_does_not_know():
    with pytest.raises(ValueError, match="no field 'optimizer'"):
        Recipe.from_dict(Recipe().to_dict() | {"optimizer": "adam"})


@pytest.mark.parametrize("change", ["epochs", "epochs:5", ""])
def test_a_change_without_an_equals_sign_is_refused(change):
    with pytest.raises(ValueError, match=r"field=value, e\.g\. epochs=5\. Received: ") as raised:
        Recipe().replace([change])
    assert repr(change) in str(raised.value)


BAD_VALUES = [
    ("epochs", 0),
    ("epochs", -1),
    ("epochs", 2.5),
    ("epochs", "5"),
    ("epochs", True),
    ("epochs", None),
    ("batch_size", 0),
    ("batch_size", 64.0),
    ("batch_size", False),
    ("learning_rate", 0),
    ("learning_rate", -0.1),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", "fast"),
    ("learning_rate", None),
    ("schedule", "linear"),
    ("schedule", None),
    ("milestones", (0.75, 0.5)),
    ("milestones", (0.0, 0.5)),
    ("milestones", (0.5, 1.0)),
    ("milestones", (0.5, math.nan)),
    ("milestones", ("half",)),
    ("milestones", None),
    ("warmup_epochs", -1),
    ("warmup_epochs", 10),
    ("warmup_epochs", math.nan),
    ("warmup_epochs", "two"),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("momentum", math.nan),
    ("momentum", None),
    ("nesterov", 1),
    ("nesterov", "yes"),
    ("nesterov", None),
    ("weight_decay", -1e-4),
    ("weight_decay", math.nan),
    ("weight_decay", math.inf),
    ("weight_decay", None),
    ("label_smoothing", 1.0),
    ("label_smoothing", -0.1),
    ("label_smoothing", None),
    ("augment", ("rotate",)),
    ("augment", "flip,rotate"),
    ("augment", 5),
    ("augment", None),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_field(field, value):
    with pytest.raises(ValueError, match=rf"Recipe field `{field}` must be .*Received: {field}="):
        Recipe(**{"epochs": 10, field: value})


def test_a_bad_value_is_refused_in_a_change_too():
    with pytest.raises(ValueError, match=r"Recipe field `epochs`.*Received: epochs='many'"):
        Recipe().replace(["epochs=many"])
    with pytest.raises(
        ValueError, match=r"`augment` must be names of \['flip'.*Received: augment="
    ):
        Recipe().replace(["augment=rotate"])


fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)


@st.composite
def recipes(draw):
    epochs = draw(st.integers(1, 12))
    return Recipe(
        epochs=epochs,
        batch_size=draw(st.integers(1, 4096)),
        learning_rate=draw(st.integers(1, 5) | st.floats(1e-5, 10)),
        schedule=draw(st.sampled_from(["constant", "step", "cosine"])),
        milestones=tuple(sorted(draw(st.lists(fractions, max_size=4)))),
        warmup_epochs=draw(st.just(0) | st.floats(0, epochs, exclude_max=True)),
        momentum=draw(st.just(0) | fractions),
        nesterov=draw(st.booleans()),
        weight_decay=draw(st.just(0) | st.floats(1e-6, 1e-2)),
        label_smoothing=draw(st.just(0) | fractions),
        augment=draw(st.lists(st.sampled_from(sorted(data.AUGMENTATIONS)), max_size=3)),
        result=draw(st.text(max_size=5)),
    )


@given(recipes())
def test_any_recipe_survives_json_and_the_command_line(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    changes = [f"{field}={value!r}" for field, value in recipe.to_dict().items()]
    assert Recipe().replace(changes) == recipe


# The learning rate


def test_a_constant_rate_stays():
    recipe = Recipe(epochs=4, learning_rate=0.3, schedule="constant")
    assert rates(recipe, 10, [0, 1, 20, 39, 100]) == [close(0.3)] * 5


def test_the_rate_of_the_paper_drops_to_a_tenth_at_exactly_the_milestones():
    recipe = RECIPES["paper-cifar"]
    half, three_quarters, total = 31_980, 47_970, 63_960  # of 164 epochs of 390 steps
    steps = [0, half - 1, half, three_quarters - 1, three_quarters, total - 1]
    assert rates(recipe, 390, steps) == [
        close(rate) for rate in (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    ]


def test_cosine_falls_from_the_highest_rate_to_nearly_nothing():
    recipe = Recipe(epochs=10, learning_rate=0.4, schedule="cosine")
    found = rates(recipe, 10, range(101))
    expected = [0.2 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
    assert found == pytest.approx(expected, abs=1e-7)
    assert found[0] == max(found) == close(0.4)
    assert found[99] < 0.4 / 1000
    assert found[100] == 0


def test_cosine_follows_a_linear_warm_up():
    recipe = Recipe(epochs=10, learning_rate=0.4, schedule="cosine", warmup_epochs=2)
    found = rates(recipe, 10, range(101))
    assert found[:21] == pytest.approx(
        [*(0.4 * (step + 1) / 21 for step in range(20)), 0.4], abs=1e-7
    )
    expected = [0.2 * (1 + math.cos(math.pi * step / 80)) for step in range(81)]
    assert found[20:] == pytest.approx(expected, abs=1e-7)
    assert max(found) == found[20] == close(0.4)
    assert found[99] < 0.4 / 1000


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_the_other_schedules_follow_a_linear_warm_up_too(schedule):
    recipe = Recipe(epochs=10, learning_rate=0.4, schedule=schedule, warmup_epochs=2)
    found = rates(recipe, 10, range(50))
    rises = [after - before for before, after in itertools.pairwise(found[:21])]
    assert found[0] <= 0.4 / 20
    assert rises == pytest.approx([rises[0]] * 20, rel=1e-4)
    assert rises[0] > 0
    assert found[20:] == [close(0.4)] * 30


@settings(max_examples=40)
@given(recipe=recipes(), steps_per_epoch=st.integers(1, 6))
def test_after_the_warm_up_every_schedule_is_what_it_is_called(recipe, steps_per_epoch):
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    steps = range(warmup, total)
    highest = recipe.learning_rate
    expected = {
        "constant": lambda step: highest,
        "step": lambda step: (
            highest * 0.1 ** sum(step >= round(m * total) for m in recipe.milestones)
        ),
        "cosine": lambda step: (
            highest / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        ),
    }[recipe.schedule]
    assert rates(recipe, steps_per_epoch, steps) == pytest.approx(
        [expected(step) for step in steps], rel=1e-4, abs=1e-6 * highest
    )


@settings(max_examples=40)
@given(recipe=recipes(), steps_per_epoch=st.integers(1, 6))
def test_the_rate_never_exceeds_the_highest_and_rises_through_the_warm_up(recipe, steps_per_epoch):
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    found = rates(recipe, steps_per_epoch, range(recipe.epochs * steps_per_epoch))
    assert all(0 <= rate <= recipe.learning_rate * (1 + 1e-6) for rate in found)
    if recipe.schedule != "step" or not recipe.milestones:
        assert found[:warmup] == sorted(set(found[:warmup]))


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_a_long_warm_up_costs_no_more_than_a_short_one(schedule):
    recipe = Recipe(epochs=10, schedule=schedule, warmup_epochs=5)

    def operations(steps_per_epoch):
        step = tf.TensorSpec((), tf.int64)
        traced = tf.function(recipe.learning_rate_schedule(steps_per_epoch).__call__)
        return len(traced.get_concrete_function(step).graph.get_operations())

    assert operations(steps_per_epoch=20) == operations(steps_per_epoch=2)
