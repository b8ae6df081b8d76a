"""Any bytes as a settings file: only the documented errors come out, or settings that can be used.

The default run is short. A long one, of new inputs each time: of each test

    FORESTGAPS_FUZZ_EXAMPLES=20000 pytest tests/test_fuzz_config.py
"""

import datetime
import json
import math
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.loss import create_loss_function, create_threshold_weights, weigh_by_threshold
from forestgaps_jax.optimization import create_optimizer, create_plateau, create_scheduler
from tests.fuzzing import fuzzed
from tests.test_config import CHANGED, NAMES

# A rate above 3e38 is infinite on the device, and jax tells so.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

SCHEDULERS = get_args(get_type_hints(Config)["scheduler_type"])
LOSSES = get_args(get_type_hints(Config)["loss_type"])

# TOML


def toml(value):
    """A value as TOML, also where it is none that a setting may have."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(name))} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.integers(),
    st.floats(),
    st.floats(0, 2),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400, -(10**30)]),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-45, 1e-300, 3.5e38, 1e308, math.nan, math.inf, -math.inf]),
)
WORDS = st.sampled_from([*SCHEDULERS, *LOSSES, "unet", "val_iou", "auto", "min", "nan", "..", "a/b", "\0"])
TIMES = st.one_of(st.dates(), st.times(), st.datetimes())
SINGLE = st.one_of(NUMBERS, st.booleans(), TEXTS, WORDS, TIMES)
ANYTHING = st.recursive(
    SINGLE,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
# What is no TOML, or too much of it, at any place of a file.
PIECES = st.sampled_from(
    [
        "[" * 3000,
        "{a=" * 2000,
        "a." * 3000,
        "1" * 5000,
        "0x" + "f" * 5000,
        '"""',
        "'",
        "=",
        "\\u0000",
        "\ufeff",
        "\r",
        "1e999",
        "nan",
    ]
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.toml"


def read(path):
    """The settings of a file, or None where it is refused as documented."""
    try:
        return Config.from_toml(path)
    except (ValueError, TypeError) as error:
        refused = error
    assert type(refused) in (ValueError, TypeError), repr(refused)
    assert str(path) in str(refused)
    assert len(str(refused)) < 5000
    return None


def use(config, path):
    """All that is made from settings alone can be made of these, and they can be written."""
    config.validate()
    config.to_toml(path)
    assert Config.from_toml(path) == config
    schedule = create_scheduler(config, 1)
    for step in (0, 1, 10**6, 2**31 - 1):
        assert jnp.shape(schedule(step)) == ()
    plateau = create_plateau(config)
    if plateau is not None:
        jax.eval_shape(plateau.update, plateau.init(), jnp.float32(0.5))
    optimizer, params = create_optimizer(config, schedule), {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = jax.eval_shape(optimizer.init, params)
    jax.eval_shape(optimizer.update, params, state, params)
    loss = create_loss_function(config)
    shares = dict.fromkeys(config.thresholds, 0.25)
    weigh_by_threshold(loss, create_threshold_weights(config, shares))


# Any file


@fuzzed(60)
@given(raw=st.one_of(st.binary(max_size=200), TEXTS.map(str.encode)))
def test_any_bytes_are_settings_or_refused(path, raw):
    path.write_bytes(raw)
    read(path)


@fuzzed(60)
@given(document=st.dictionaries(st.one_of(st.sampled_from(NAMES), TEXTS), ANYTHING, max_size=5))
def test_any_toml_is_settings_or_refused(path, document):
    path.write_text("\n".join(f"{toml(name)} = {toml(value)}" for name, value in document.items()), "utf-8")
    if config := read(path):
        use(config, path)


@fuzzed(60)
@given(data=st.data())
def test_a_damaged_file_is_settings_or_refused(path, data):
    Config(**data.draw(st.sampled_from([{}, CHANGED]))).to_toml(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        first = data.draw(st.integers(0, len(raw)))
        last = first + data.draw(st.sampled_from([0, 1, 1, 5, 100, len(raw)]))
        new = st.one_of(
            st.binary(min_size=last - first, max_size=last - first) if last - first < 9 else st.just(b"")
        )
        raw[first:last] = data.draw(st.one_of(new, NUMBERS.map(toml).map(str.encode), PIECES.map(str.encode)))
    path.write_bytes(raw)
    if config := read(path):
        use(config, path)


# One setting at a time, and the few that act together


@pytest.mark.parametrize("name", NAMES)
@fuzzed(6)
@given(value=ANYTHING)
def test_any_value_of_a_setting_is_used_or_refused(path, name, value):
    path.write_text(f"{name} = {toml(value)}\n", "utf-8")
    if config := read(path):
        use(config, path)


def numbers_of(scheduler):
    """Settings of a schedule, all of extreme numbers."""
    any_length = st.one_of(
        st.floats(0, 1e10, exclude_min=True), st.sampled_from([5e-324, 1e-9, 2.0**31, 1e308])
    )
    lengths = ("warmup_epochs", "cycle_epochs", "cycle_mult", "step_size", "div_factor", "final_div_factor")
    rates = ("learning_rate", "max_lr", "step_gamma", "exponential_gamma")
    return st.fixed_dictionaries(
        {"scheduler_type": st.just(scheduler), "min_lr": st.just(0.0), "warmup_start_lr": st.just(0.0)},
        optional={
            **dict.fromkeys((*lengths, *rates), any_length),
            **dict.fromkeys(("epochs", "cycles", "gradient_accumulation_steps"), st.integers(1, 2**31)),
            "pct_start": st.floats(0, 1),
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
        },
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@fuzzed(12)
@given(data=st.data())
def test_any_numbers_of_a_schedule_are_used_or_refused(path, scheduler, data):
    document = data.draw(numbers_of(scheduler))
    path.write_text("\n".join(f"{name} = {toml(value)}" for name, value in document.items()), "utf-8")
    if config := read(path):
        use(config, path)


@pytest.mark.parametrize("loss", LOSSES)
@fuzzed(4)
@given(data=st.data())
def test_any_numbers_of_a_loss_are_used_or_refused(path, loss, data):
    names = ("loss_alpha", "focal_alpha", "focal_gamma", "dice_smooth", "huber_delta", "label_smoothing")
    lists = ("combo_weights", "adaptive_weights", "thresholds")
    optional = {name: NUMBERS for name in names} | {name: st.lists(NUMBERS, max_size=3) for name in lists}
    document = data.draw(st.fixed_dictionaries({"loss_type": st.just(loss)}, optional=optional))
    path.write_text("\n".join(f"{name} = {toml(value)}" for name, value in document.items()), "utf-8")
    if config := read(path):
        use(config, path)


# What was found


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            "thresholds = " + "[" * 5000,
            ValueError,
            "is not valid TOML: lists or tables too deep in each other",
        ),
        (
            "epochs = " + "{a = " * 5000,
            ValueError,
            "is not valid TOML: lists or tables too deep in each other",
        ),
        ("epochs" + ".a" * 3000 + " = 1", TypeError, r"epochs = \(dict too large to show\): must be int"),
        ("epochs = " + "1" * 5000, ValueError, "is not valid TOML: .*4300 digits"),
        ("epochs = 0x" + "f" * 5000, ValueError, r"epochs = \(int too large to show\): must be below 2\^31"),
        ("learning_rate = 1" + "0" * 400, ValueError, r"learning_rate = 10+\.\.\.: must be below 1\.8e308"),
        ("name = '" + "a" * 10**5 + "/'", ValueError, r"name = 'a+\.\.\.: must be a plain folder name"),
        ("a" * 10**5 + " = 1", ValueError, r"has no setting 'a+\.\.\.;"),
        ("epochs = 2147483648", ValueError, r"epochs = 2147483648: must be below 2\^31"),
        ("seed = 4294967296", ValueError, r"seed = 4294967296: must be below 2\^32"),
        ("opening_windows = [3, 2147483649]", ValueError, r"opening_windows = .*must be below 2\^31"),
        ("depth = 2147483647", ValueError, "tile_size = 128 does not fit depth = 2147483647"),
        ("chm_only = {'a.tif' = 1}", TypeError, "chm_only = .*must be a list"),
        ("threshold_weight_adjustment = {5 = 1.0, '5.0' = 2.0}", ValueError, r"has 5\.0 twice"),
        ("warmup_epochs = 1e308", ValueError, r"warmup_epochs = 1e\+308: must be below 2\^31"),
        ("cycle_epochs = 2147483648", ValueError, r"cycle_epochs = 2147483648\.0: must be below 2\^31"),
        ("step_size = 1e308", ValueError, r"step_size = 1e\+308: must be below 2\^31"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else value.__name__,
)
def test_what_is_too_much_is_refused_in_a_few_lines(path, text, error, said):
    path.write_text(text)
    with pytest.raises(error, match=rf"run\.toml.*{said}") as caught:
        Config.from_toml(path)
    assert type(caught.value) is error
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheduler_type": "cosine_restart", "cycle_mult": 1e308}, r"cycle 2 would have inf epochs"),
        (
            {"scheduler_type": "cosine_restart", "cycle_epochs": 1e-9, "cycles": 10**9},
            "there can be 1000 cycles",
        ),
        ({"scheduler_type": "onecycle", "max_lr": 5e-324}, r"max_lr = .* over div_factor = 25 is 0.*above 0"),
        ({"scheduler_type": "onecycle", "div_factor": 5e-324}, r"is inf, and onecycle starts from it"),
        ({"loss_type": "adaptive", "adaptive_weights": ()}, r"adaptive_weights = \(\), .*one for each"),
        ({"loss_type": "adaptive", "adaptive_weights": (1.0, 1001.0)}, "must be from 0.001 to 1000"),
    ],
    ids=str,
)
def test_numbers_that_no_schedule_or_loss_can_be_made_of_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Config(**given).validate()


def test_a_cosine_restart_of_more_cycles_than_fit_is_cut_as_ever(path):
    use(Config(scheduler_type="cosine_restart", cycle_epochs=10.0, cycle_mult=2.0, cycles=10**6), path)


def test_the_largest_numbers_that_are_taken_can_be_used(path):
    most = 2**31 - 1
    use(Config(seed=2**32 - 1, epochs=most, plateau_patience=most, scheduler_type="plateau"), path)
    use(
        Config(warmup_epochs=2.0**31 - 1, scheduler_type="cosine_warm", gradient_accumulation_steps=most),
        path,
    )


def test_a_folder_is_no_settings_file(path, tmp_path):
    path.write_text("")
    for wrong in (tmp_path, path / "run.toml"):
        with pytest.raises(FileNotFoundError, match=f"there is no settings file {wrong}"):
            Config.from_toml(wrong)


def test_text_that_a_settings_file_cannot_hold_is_refused_before_it_is_written():
    with pytest.raises(
        ValueError, match=r"dsm = 'For\\udceat\.tif': must be text that can be written as UTF-8"
    ):
        Config(dsm=(b"For\xeat.tif".decode("utf-8", "surrogateescape"),))
