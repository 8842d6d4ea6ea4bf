"""Recipes: their fields, their changes, the learning rate at every step, and the optimizers."""

import dataclasses
import itertools
import json
import math
import shlex

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_resnet import cli, training
from keras_resnet.data.augment import AUGMENTATIONS, Augmentation
from keras_resnet.training import RECIPES, Recipe
from keras_resnet.training.recipes import DECAYS, OPTIMIZERS, SCHEDULES

FIELDS = [field.name for field in dataclasses.fields(Recipe)]


def rates(recipe, steps_per_epoch, steps):
    """The learning rate at each of the steps."""
    schedule = recipe.learning_rate_schedule(steps_per_epoch)
    # A constant rate is a plain number, so that callbacks may change it.
    is_plain = recipe.schedule == "constant" and not recipe.warmup
    assert isinstance(schedule, float) == is_plain
    if is_plain:
        return [schedule for _ in steps]
    return schedule(tf.constant(list(steps), tf.int64)).numpy().tolist()


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
    assert RECIPES[name].result


@pytest.mark.parametrize("name", RECIPES)
def test_a_result_that_is_somebody_elses_is_marked_as_not_run_here(name):
    recipe = RECIPES[name]
    if not recipe.source.startswith("this package"):
        assert recipe.result.endswith("; not run here")


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_a_recipe_trains_by_that_recipe(name):
    for recipe in (RECIPES[name], RECIPES[name].replace(epochs=700, augment=[], source="none")):
        program, *words = shlex.split(recipe.command)
        options = cli.make_parser().parse_args(words)
        assert program == "keras-resnet"
        assert training.get_recipe(options.recipe).replace(options.set) == recipe


def test_a_recipe_of_ones_own_has_no_command():
    assert Recipe(name="mine").command == ""


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
    assert (recipe.optimizer, recipe.nesterov, recipe.decay) == ("sgd", False, "all")
    assert recipe.augment == ("pad-crop", "flip")
    # 45,000 training images make 351 steps an epoch, 50,000 make 390: about 64,000 steps.
    assert abs(recipe.epochs * 390 - 64_000) < 390


def test_the_recipes_of_imagenet_take_as_many_steps_as_their_sources():
    images = 1_281_167
    assert abs(RECIPES["paper-imagenet"].epochs * (images // 256) - 600_000) < 1000
    torchvision = RECIPES["torchvision-v1"]
    steps = images // torchvision.batch_size
    at = [29 * steps, 30 * steps - 1, 30 * steps, 60 * steps - 1, 60 * steps, 90 * steps - 1]
    found = rates(torchvision, steps, at)
    assert found == [close(rate) for rate in (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)]


def test_the_recipe_of_mlperf_tiny_takes_off_a_hundredth_after_every_epoch():
    recipe = RECIPES["mlperf-tiny"]
    steps = 1562  # of 32, of 50,000 images
    found = rates(recipe, steps, [0, steps - 1, steps, 2 * steps - 1, 499 * steps, 500 * steps - 1])
    assert found == [close(1e-3 * 0.99**epoch) for epoch in (0, 0, 1, 1, 499, 499)]
    assert isinstance(recipe.make_optimizer(steps), keras.optimizers.Adam)


def test_the_average_of_the_modern_recipe_forgets_as_fast_as_its_sources():
    # torchvision's references: 1 - 0.99998, times the batch, the 32 steps between two updates and
    # 1 / epochs, is what the average moves by in 32 steps.
    moved = (1 - 0.99998) * 1024 * 32 / 600
    recipe = RECIPES["modern"]
    assert 1 - recipe.ema**32 == pytest.approx(moved, rel=0.01)


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
        ("crop_area=0.35,1", "crop_area", (0.35, 1.0)),
        ("crop_area=(0.35, 1)", "crop_area", (0.35, 1.0)),
        ("betas=0.9,0.99", "betas", (0.9, 0.99)),
        ("randaugment=3,15", "randaugment", (3, 15)),
        ("rate_batch=256", "rate_batch", 256),
        ("rate_batch=None", "rate_batch", None),
        ("rate_batch=none", "rate_batch", None),
        ("optimizer=adamw", "optimizer", "adamw"),
        ("decay=all", "decay", "all"),
        ("mixup=1", "mixup", 1.0),
        ("name=2024", "name", "2024"),
        ("source=none", "source", "none"),
        ("source='none'", "source", "none"),
        ("augment=random-resized-crop, flip", "augment", ("random-resized-crop", "flip")),
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
    [
        ("epoch", "epochs"),
        ("learning_rat", "learning_rate"),
        ("Augment", "augment"),
        ("optimiser", "optimizer"),
    ],
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
    with pytest.raises(ValueError, match="no field 'rotation'"):
        Recipe.from_dict(Recipe().to_dict() | {"rotation": 15})
    with pytest.raises(ValueError, match="no field 5"):
        Recipe.from_dict({5: 5})


@pytest.mark.parametrize("values", [["epochs=5"], "epochs=5", None, 5])
def test_from_dict_refuses_what_is_no_mapping(values):
    with pytest.raises(ValueError, match="`values` must be a mapping"):
        Recipe.from_dict(values)


def test_from_dict_takes_the_recipe_of_a_run_from_before_there_were_so_many_fields():
    old = {"name": "digits", "epochs": 15, "batch_size": 64, "learning_rate": 0.05}
    recipe = Recipe.from_dict(old)
    assert (recipe.epochs, recipe.peak_rate) == (15, 0.05)


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
    ("augment", ["flip", "flip"]),
    ("augment", ["flip", "random-resized-crop"]),
    ("augment", [["flip"]]),
    ("name", None),
    ("name", 5),
    ("source", ["a"]),
    ("epochs", 10**400),
    ("epochs", [10]),
    ("learning_rate", True),
    ("learning_rate", 10**400),
    ("learning_rate", [0.1]),
    ("learning_rate", {"rate": 0.1}),
    ("rate_batch", 0),
    ("rate_batch", 128.0),
    ("rate_batch", True),
    ("schedule", ["cosine"]),
    ("milestones", ((0.5,),)),
    ("milestones", (True,)),
    ("gamma", 0),
    ("gamma", 1.1),
    ("gamma", math.nan),
    ("power", 0),
    ("power", -1),
    ("optimizer", "lamb"),
    ("optimizer", None),
    ("betas", 0.9),
    ("betas", (0.9,)),
    ("betas", (0.9, 1.0)),
    ("betas", (0.9, 0.99, 0.999)),
    ("betas", (0.9, math.nan)),
    ("decay", "none"),
    ("clip", -1),
    ("clip", math.inf),
    ("ema", 1),
    ("ema", -0.1),
    ("early_stopping", -1),
    ("early_stopping", 1.5),
    ("early_stopping", True),
    ("frozen_epochs", 3),
    ("frozen_epochs", -1),
    ("frozen", None),
    ("crop_area", 0.5),
    ("crop_area", (0.0, 1.0)),
    ("crop_area", (0.5, 0.4)),
    ("crop_area", (0.5, 1.1)),
    ("crop_area", ("a", "b")),
    ("crop_ratio", (2, 1)),
    ("randaugment", (2.0, 9)),
    ("randaugment", (0, 9)),
    ("randaugment", (2, 31)),
    ("erase", 1.5),
    ("erase", math.nan),
    ("mixup", -0.2),
    ("mixup", True),
    ("cutmix", math.inf),
    ("eval_crop", 0),
    ("eval_crop", 1.1),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_field(field, value):
    with pytest.raises(ValueError, match=rf"Recipe field `{field}` must be .*Received: {field}="):
        Recipe(**{"epochs": 10, field: value})


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_takes_whatever_it_is_given(field):
    for value in (object(), {}, {"a": 1}, b"sgd"):
        with pytest.raises(ValueError, match=f"Recipe field `{field}` must be "):
            Recipe(**{field: value})


def test_a_bad_value_is_refused_in_a_change_too():
    with pytest.raises(ValueError, match=r"Recipe field `epochs`.*Received: epochs='many'"):
        Recipe().replace(["epochs=many"])
    with pytest.raises(
        ValueError, match=r"Recipe field `augment` must be names from .*'flip'.*Received: augment="
    ):
        Recipe().replace(["augment=rotate"])


def test_frozen_stages_need_a_time_and_a_time_needs_stages():
    assert Recipe(frozen="C4", frozen_epochs=10).frozen_epochs == 10
    for fields in ({"frozen": "C4"}, {"frozen_epochs": 2}, {"frozen": "C4", "frozen_epochs": 11}):
        with pytest.raises(ValueError, match=r"Recipe field `frozen_epochs` must be .*Received: "):
            Recipe(**fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


def read(values):
    """The recipe that a dictionary makes, or what is wrong with it."""
    try:
        return Recipe.from_dict(values), None
    except ValueError as error:
        return None, str(error)


@settings(max_examples=300)
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_whatever_json_holds_is_refused_with_its_name_or_makes_a_recipe(field, value):
    recipe, error = read(Recipe(epochs=3).to_dict() | {field: value})
    if recipe is None:
        assert "Recipe field `" in error
        return
    assert read(json.loads(json.dumps(recipe.to_dict(), allow_nan=False))) == (recipe, None)
    for name in FIELDS:
        assert type(getattr(recipe, name)) in (type(getattr(Recipe(), name)), int)


fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)
numbers = st.just(0) | st.floats(1e-6, 10)


@st.composite
def augmentations(draw):
    names = st.sampled_from(sorted(set(AUGMENTATIONS) - {"random-resized-crop"}))
    steps = draw(st.lists(names, max_size=3, unique=True))
    low, high = sorted(draw(st.tuples(fractions, fractions)))
    return {
        "augment": ["random-resized-crop", *steps] if draw(st.booleans()) else steps,
        "crop_area": (low, high),
        "crop_ratio": (low, high + 1),
        "randaugment": draw(st.tuples(st.integers(1, 3), st.integers(0, 30))),
        "erase": draw(st.sampled_from([0, 1]) | fractions),
        "mixup": draw(numbers),
        "cutmix": draw(numbers),
    }


@st.composite
def recipes(draw):
    epochs = draw(st.integers(1, 12))
    frozen = draw(st.sampled_from(["", "stem", "C4"]))
    return Recipe(
        epochs=epochs,
        batch_size=draw(st.integers(1, 4096)),
        learning_rate=draw(st.integers(1, 5) | st.floats(1e-5, 10)),
        rate_batch=draw(st.none() | st.integers(1, 4096)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        milestones=tuple(sorted(draw(st.lists(fractions, max_size=4)))),
        gamma=draw(st.just(1) | st.floats(0.01, 1)),
        power=draw(st.integers(1, 3) | st.floats(0.1, 4)),
        warmup_epochs=draw(st.just(0) | st.floats(0, epochs, exclude_max=True)),
        optimizer=draw(st.sampled_from(OPTIMIZERS)),
        momentum=draw(st.just(0) | fractions),
        nesterov=draw(st.booleans()),
        betas=draw(st.tuples(fractions, st.just(0) | fractions)),
        weight_decay=draw(st.just(0) | st.floats(1e-6, 1e-2)),
        decay=draw(st.sampled_from(DECAYS)),
        clip=draw(numbers),
        ema=draw(st.just(0) | fractions),
        label_smoothing=draw(st.just(0) | fractions),
        early_stopping=draw(st.integers(0, 5)),
        frozen=frozen,
        frozen_epochs=draw(st.integers(1, epochs)) if frozen else 0,
        eval_crop=draw(st.just(1) | fractions),
        result=draw(st.text(max_size=5)),
        **draw(augmentations()),
    )


@given(recipes())
def test_any_recipe_survives_json_and_the_command_line(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    changes = [f"{field}={value!r}" for field, value in recipe.to_dict().items()]
    assert Recipe().replace(changes) == recipe
    words = shlex.split(dataclasses.replace(recipe, name="small").command)
    options = cli.make_parser().parse_args(words[1:])
    assert RECIPES["small"].replace(options.set).replace(name="custom") == recipe


def test_the_fields_of_the_augmentation_reach_it():
    recipe = Recipe(augment=["flip"], crop_area=(0.3, 0.9), erase=0.25, mixup=0.2, cutmix=1)
    assert recipe.augmentation == Augmentation(
        steps=("flip",), crop_area=(0.3, 0.9), erase=0.25, mixup=0.2, cutmix=1.0
    )


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


def test_polynomial_falls_to_zero_by_its_power():
    recipe = Recipe(epochs=10, learning_rate=0.4, schedule="polynomial", power=2, warmup_epochs=2)
    found = rates(recipe, 10, range(20, 101))
    assert found == pytest.approx([0.4 * (1 - step / 80) ** 2 for step in range(81)], abs=1e-7)


def test_one_cycle_rises_from_a_25th_and_falls_to_a_ten_thousandth_of_that():
    recipe = Recipe(epochs=10, learning_rate=0.5, schedule="one-cycle")
    found = rates(recipe, 100, range(1000))
    assert found[0] == close(0.02)
    assert found.index(max(found)) == 299  # three tenths of the training
    assert found[299] == close(0.5)
    assert found[999] == pytest.approx(2e-6, rel=1e-2)
    assert found[:300] == sorted(found[:300])
    assert found[299:] == sorted(found[299:], reverse=True)


def test_the_rising_part_of_one_cycle_is_as_long_as_the_warm_up():
    recipe = Recipe(epochs=10, learning_rate=0.5, schedule="one-cycle", warmup_epochs=2)
    found = rates(recipe, 100, range(1000))
    assert found.index(max(found)) == 199
    assert found[0] == close(0.02)


def test_one_cycle_of_a_single_step_is_a_number():
    recipe = Recipe(epochs=1, learning_rate=0.5, schedule="one-cycle")
    assert all(0 < rate <= 0.5 for rate in rates(recipe, 1, [0]))


@settings(max_examples=60)
@given(recipe=recipes(), steps_per_epoch=st.integers(1, 6))
def test_after_the_warm_up_every_schedule_is_what_it_is_called(recipe, steps_per_epoch):
    recipe = recipe.replace(schedule="cosine") if recipe.schedule == "one-cycle" else recipe
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup * steps_per_epoch)
    steps = range(warmup, total)
    highest = recipe.peak_rate
    expected = {
        "constant": lambda step: highest,
        "step": lambda step: (
            highest * recipe.gamma ** sum(step >= round(m * total) for m in recipe.milestones)
        ),
        "cosine": lambda step: (
            highest / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        ),
        "polynomial": lambda step: (
            highest * (1 - (step - warmup) / (total - warmup)) ** recipe.power
        ),
        "exponential": lambda step: highest * recipe.gamma ** (step // steps_per_epoch),
    }[recipe.schedule]
    assert rates(recipe, steps_per_epoch, steps) == pytest.approx(
        [expected(step) for step in steps], rel=1e-4, abs=1e-6 * highest
    )


@settings(max_examples=60)
@given(recipe=recipes(), steps_per_epoch=st.integers(1, 6))
def test_the_rate_never_exceeds_the_highest_and_rises_through_the_warm_up(recipe, steps_per_epoch):
    warmup = round(recipe.warmup * steps_per_epoch)
    found = rates(recipe, steps_per_epoch, range(recipe.epochs * steps_per_epoch))
    assert all(0 <= rate <= recipe.peak_rate * (1 + 1e-6) for rate in found)
    if recipe.schedule in ("constant", "cosine", "polynomial"):
        assert found[:warmup] == sorted(set(found[:warmup]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_long_warm_up_costs_no_more_than_a_short_one(schedule):
    recipe = Recipe(epochs=10, schedule=schedule, warmup_epochs=5)

    def operations(steps_per_epoch):
        step = tf.TensorSpec((), tf.int64)
        traced = tf.function(recipe.learning_rate_schedule(steps_per_epoch).__call__)
        return len(traced.get_concrete_function(step).graph.get_operations())

    assert operations(steps_per_epoch=20) == operations(steps_per_epoch=2)


# The learning rate follows the batch


@pytest.mark.parametrize(("batch", "rate"), [(64, 0.05), (128, 0.1), (256, 0.2), (1024, 0.8)])
def test_the_rate_is_proportional_to_the_batch(batch, rate):
    recipe = Recipe(learning_rate=0.1, rate_batch=128, batch_size=batch)
    assert recipe.peak_rate == pytest.approx(rate, rel=1e-12)
    assert max(rates(recipe, 10, range(100))) == close(rate)


def test_without_a_batch_of_its_own_the_rate_is_that_of_any_batch():
    assert Recipe(learning_rate=0.1, batch_size=1024).peak_rate == 0.1


def test_the_constant_rate_of_another_batch_is_a_plain_number_unless_it_needs_a_warm_up():
    recipe = Recipe(schedule="constant", learning_rate=0.1, rate_batch=128)
    assert recipe.replace(batch_size=64).learning_rate_schedule(10) == 0.05
    assert recipe.replace(batch_size=128).learning_rate_schedule(10) == 0.1
    assert not isinstance(recipe.replace(batch_size=256).learning_rate_schedule(10), float)


@pytest.mark.parametrize(("epochs", "warmup"), [(90, 5.0), (50, 5.0), (20, 2.0), (1, 0.1)])
def test_a_larger_batch_warms_up_from_the_rate_of_the_smaller_one(epochs, warmup):
    recipe = Recipe(
        epochs=epochs, schedule="step", learning_rate=0.1, rate_batch=256, batch_size=1024
    )
    assert recipe.warmup == pytest.approx(warmup, rel=1e-12)
    steps = round(warmup * 20)
    found = rates(recipe, 20, range(steps + 1))
    assert found[0] == close(0.1)
    assert found == pytest.approx([0.1 + 0.3 * step / steps for step in range(steps + 1)], rel=1e-5)


def test_the_steps_of_a_schedule_do_not_move_with_the_gradual_warm_up():
    recipe = RECIPES["paper-cifar"].replace(batch_size=512)
    steps = 97
    half = 82 * steps
    assert rates(recipe, steps, [half - 1, half]) == [close(0.4), close(0.04)]


def test_a_warm_up_of_the_recipes_own_stands_for_every_batch():
    recipe = Recipe(warmup_epochs=2, learning_rate=0.1, rate_batch=128, batch_size=1024)
    assert recipe.warmup == 2
    assert rates(recipe, 10, [0, 20]) == [close(0.8 / 21), close(0.8)]


def test_a_smaller_batch_and_one_cycle_need_no_warm_up():
    small = Recipe(learning_rate=0.1, rate_batch=128, batch_size=32)
    cycle = Recipe(learning_rate=0.1, rate_batch=128, batch_size=512, schedule="one-cycle")
    assert (small.warmup, cycle.warmup) == (0, 0)
    assert rates(small, 10, [0]) == [close(0.025)]
    assert rates(cycle, 100, [0, 299]) == [close(0.4 / 25), close(0.4)]


# Optimizers


def reference_step(recipe, rate, step, weight, gradient, state):
    """What the optimizer's step does to one weight, after its papers, in float64."""
    if recipe.optimizer == "sgd":
        velocity = recipe.momentum * state.get("velocity", 0) - rate * gradient
        state["velocity"] = velocity
        return weight + (
            recipe.momentum * velocity - rate * gradient if recipe.nesterov else velocity
        )
    if recipe.optimizer == "adamw" and (recipe.decay == "all" or weight.ndim > 1):
        weight = weight - rate * recipe.weight_decay * weight
    first, second = recipe.betas
    state["m"] = first * state.get("m", 0) + (1 - first) * gradient
    state["v"] = second * state.get("v", 0) + (1 - second) * gradient**2
    # Kingma and Ba 2015, the last paragraph of section 2, with the epsilon hat of 1e-7.
    size = rate * math.sqrt(1 - second**step) / (1 - first**step)
    return weight - size * state["m"] / (np.sqrt(state["v"]) + 1e-7)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_several_steps_of_an_optimizer_are_those_of_its_paper(optimizer, nesterov, decay):
    recipe = Recipe(
        epochs=2, optimizer=optimizer, nesterov=nesterov, decay=decay, weight_decay=0.1,
        betas=(0.8, 0.95), learning_rate=0.2, warmup_epochs=1,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    expected = [generator.normal(size=shape) for shape in [(3, 3, 2, 4), (4,), (4, 2), (2,)]]
    variables = [keras.Variable(value, dtype="float64") for value in expected]
    updater = recipe.make_optimizer(steps_per_epoch=4)
    updater.build(variables)
    states = [{} for _ in expected]
    for step, rate in enumerate(rates(recipe, 4, range(8)), start=1):
        gradients = [generator.normal(size=value.shape) for value in expected]
        updater.apply_gradients(
            [(tf.constant(g), v) for g, v in zip(gradients, variables, strict=True)]
        )
        expected = [
            reference_step(recipe, rate, step, *rest)
            for rest in zip(expected, gradients, states, strict=True)
        ]
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-7)


def test_decay_leaves_biases_and_normalization_alone_unless_everything_decays():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    kernels = [variable for variable in network.trainable_variables if variable.name == "kernel"]
    recipe = Recipe(optimizer="adamw", weight_decay=0.5, learning_rate=0.1, schedule="constant")

    def decayed(recipe):
        for variable in network.trainable_variables:
            variable.assign(tf.ones(variable.shape))
        zeros = [tf.zeros(variable.shape) for variable in network.trainable_variables]
        optimizer = recipe.make_optimizer(10)
        optimizer.apply_gradients(zip(zeros, network.trainable_variables, strict=True))
        moved = []
        for variable in network.trainable_variables:
            value = variable.numpy()
            is_decayed = np.allclose(value, 0.95, rtol=1e-6)  # 1 - 0.1 * 0.5
            assert is_decayed or np.all(value == 1)
            assert recipe.decays(variable) == is_decayed
            if is_decayed:
                moved.append(variable)
        return moved

    assert len(kernels) == 2
    assert decayed(recipe) == kernels
    assert decayed(recipe.replace(decay="all")) == network.trainable_variables
    assert decayed(recipe.replace(weight_decay=0)) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_coupled_decay_is_left_to_the_loop(optimizer):
    recipe = Recipe(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)
    variable = keras.Variable(np.ones((2, 2)))
    recipe.make_optimizer(10).apply_gradients([(tf.zeros((2, 2)), variable)])
    assert np.all(variable.numpy() == 1)


def test_the_rate_is_worked_out_once_for_all_variables():
    recipe = Recipe(optimizer="adamw", weight_decay=0.1, schedule="cosine")
    variables = [keras.Variable(np.ones((2, 2))) for _ in range(5)]
    optimizer = recipe.make_optimizer(10)
    optimizer.build(variables)

    @tf.function
    def step():
        optimizer.apply_gradients([(tf.ones((2, 2)), variable) for variable in variables])

    operations = [
        operation.type for operation in step.get_concrete_function().graph.get_operations()
    ]
    assert operations.count("Cos") == 1


def test_a_constant_rate_can_be_changed_while_training():
    recipe = Recipe(schedule="constant", learning_rate=0.5, rate_batch=256, batch_size=128)
    optimizer = recipe.make_optimizer(10)
    optimizer.learning_rate = 0.125
    variable = keras.Variable(np.zeros((2,)))
    optimizer.apply_gradients([(tf.ones((2,)), variable)])
    assert variable.numpy().tolist() == [-0.125, -0.125]
