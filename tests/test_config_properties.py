"""Any allowed values of all settings at once, written and read again."""

import tomllib
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.fields import checked
from forestgaps_jax.settings import Settings

HINTS = get_type_hints(Settings, include_extras=True)
# What rules bound lies mostly around these; the rest may be as large as the device counts.
PLAIN = {
    bool: st.booleans(),
    int: st.one_of(st.integers(0, 70), st.integers(0, 2**31 - 1)),
    float: st.one_of(st.floats(0, 1), st.floats(0, 100), st.floats(-1e9, 1e9)),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
}


def values_of(hint):
    """What a setting of this type may be."""
    if get_origin(hint) is Annotated:
        kind, rule = get_args(hint)
        return values_of(kind).filter(rule.holds)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return st.one_of(*(st.none() if arg is NoneType else values_of(arg) for arg in args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is dict:
        return st.dictionaries(*map(values_of, args), max_size=3)
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values_of(args[0]), max_size=4).map(tuple)
    return st.tuples(*map(values_of, args)) if origin is tuple else PLAIN[hint]


# What must fit something else is drawn so that it does.
FITTING = {
    "thresholds": st.lists(st.integers(1, 6000), min_size=4, max_size=8, unique=True).map(
        lambda centimetres: tuple(c / 100 for c in centimetres)
    ),
    "threshold_range": st.one_of(st.none(), st.tuples(st.floats(0.1, 10), st.floats(10.1, 90))),
    "thresholds_per_tile": st.integers(1, 4),
    "tile_size": st.sampled_from([64, 128, 1024]),
    "depth": st.integers(1, 6),
    "val_fraction": st.floats(0, 0.4),
    "test_fraction": st.floats(0, 0.4),
    "learning_rate": st.floats(1e-3, 1e30),
    "min_lr": st.floats(0, 1e-3),
    "warmup_start_lr": st.floats(0, 1e-3),
    "cycle_mult": st.floats(0.1, 1),
    "cycle_epochs": st.floats(1, 1e3),
    "epochs": st.integers(1, 900),
    "max_lr": st.one_of(st.none(), st.floats(1e-6, 1e6)),
    "div_factor": st.floats(1e-6, 1e6),
    "adaptive_weights": st.none(),
    "use_dice": st.just(True),
    "chm": st.just(()),
    "dsm": st.just(()),
    "site_weights": st.just(()),
    "site_names": st.just(()),
}
RISING = ("virtual_resolution", "virtual_slope", "virtual_closure", "virtual_height", "augment_height")
FITTING |= {name: values_of(HINTS[name]).map(lambda ends: tuple(sorted(ends))) for name in RISING}
FITTING["profile_steps"] = values_of(HINTS["profile_steps"]).map(lambda ends: ends and tuple(sorted(ends)))
CHOSEN = st.fixed_dictionaries({name: FITTING.get(name, values_of(hint)) for name, hint in HINTS.items()})


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(CHOSEN, st.lists(PLAIN[str], min_size=1, max_size=3), st.floats(0.1, 9))
def test_any_settings_that_fit_each_other_come_back_from_their_file(tmp_path, chosen, rasters, weight):
    adjusted = dict.fromkeys(chosen["thresholds"][1:3], weight)
    chosen |= {"dsm": rasters, "chm": rasters[::-1], "threshold_weight_adjustment": adjusted}
    chosen["site_weights"] = [weight] * (len(rasters) + len(chosen["chm_only"]))
    config, path = Config(**chosen), tmp_path / "run.toml"
    config.to_toml(path)
    assert Config.from_toml(path) == config
    assert Config(**config.to_dict()) == config
    # As any reader of TOML has them.
    plain = tomllib.loads(path.read_text(encoding="utf-8"))
    simple = {name: value for name, value in config.to_dict().items() if isinstance(value, str | int | float)}
    assert {name: plain[name] for name in simple} == simple


@settings(max_examples=60)
@given(st.data(), st.sampled_from(sorted(HINTS)))
def test_a_value_that_is_allowed_stays_as_it_is_and_stays_so(data, name):
    value = data.draw(values_of(HINTS[name]))
    kept = checked(name, value, HINTS[name])
    assert kept == value
    assert repr(checked(name, kept, HINTS[name])) == repr(kept)
