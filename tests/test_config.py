import copy
import dataclasses
import pickle
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.fields import field_docs

# A value other than the default for every setting.
CHANGED = {
    "name": 'Forêt "d\'Eawy" 森\\nord\n\ttwo',
    "runs_dir": "C:\\runs",
    "seed": 7,
    "epochs": 3,
    "batch_size": 2,
    "thresholds": (2.0, 7.5),
    "threshold_range": (2.0, 30.0),
    "thresholds_per_tile": 4,
    "monitor_metric": "val_f1",
    "monitor_mode": "min",
    "model_name": "unet",
    "features": 8,
    "depth": 2,
    "norm": "group",
    "batch_norm_parts": 2,
    "dropout": 0.1,
    "use_droppath": True,
    "droppath_start_prob": 0.1,
    "droppath_final_prob": 1.0,
    "droppath_strategy": "exp",
    "spectral_norm": True,
    "precision": "bfloat16",
    "remat": True,
    "devices": 1,
    "fsdp": 2,
    "height_scale": 5.0,
    "detrend": False,
    "opening_windows": (3, 9),
    "chm_only": ("c.tif",),
    "virtual_closure": (0.5, 0.9),
    "virtual_height": (10.0, 30.0),
    "virtual_share": 0.3,
    "site_weights": (1.0, 2.0, 0.5),
    "site_names": ("Eawy", ""),
    "sites": ("pairs", "more/*_DSM.tif", "list.csv"),
    "stream": "always",
    "memory_share": 0.5,
    "shard_rasters": "always",
    "dsm": ("a b.tif", "é.tif"),
    "chm": ("c.tif", "d#.tif"),
    "virtual_sites": 1,
    "virtual_size": 64,
    "virtual_resolution": (0.5, 2.0),
    "virtual_slope": (0.0, 45.0),
    "tile_size": 32,
    "tile_overlap": 0.25,
    "min_valid_fraction": 1.0,
    "block_size": 100.0,
    "split_buffer": 0.0,
    "val_fraction": 0.3,
    "test_fraction": 0.0,
    "augment": False,
    "augment_tilt": 60.0,
    "augment_relief": 10.0,
    "augment_ridges": 15.0,
    "augment_height": (0.7, 1.4),
    "augment_resolution": 0.5,
    "augment_smoothing": 5.0,
    "augment_blur": 1.5,
    "augment_pits": 0.1,
    "augment_noise": 0.2,
    "augment_missing": 0.3,
    "loss_type": "focal",
    "loss_alpha": 1.0,
    "focal_alpha": 0.75,
    "focal_gamma": 0.0,
    "dice_smooth": 1e-12,
    "dice_reduction": "image",
    "combo_weights": (1.0, 0.0, 2.0),
    "use_focal": False,
    "use_dice": False,
    "use_bce": True,
    "adaptive_weights": (2.0,),
    "huber_delta": 0.5,
    "label_smoothing": 0.1,
    "use_threshold_weights": True,
    "threshold_weight_adjustment": {2.0: 0.5, 7.5: 3.0},
    "optimizer": "sgd",
    "learning_rate": 1e22,
    "weight_decay": 0.1,
    "adam_betas": (0.0, 0.99),
    "momentum": 0.5,
    "nesterov": False,
    "use_gradient_clipping": True,
    "clip_value": 0.1,
    "clip_norm": False,
    "monitor_gradients": True,
    "gradient_accumulation_steps": 4,
    "ema_decay": 0.99,
    "scheduler_type": "cosine_warm",
    "min_lr": 0.0,
    "warmup_epochs": 0.5,
    "warmup_start_lr": 1e-9,
    "cycle_epochs": 10.0,
    "cycles": 2,
    "cycle_mult": 2.0,
    "plateau_mode": "max",
    "plateau_factor": 0.5,
    "plateau_patience": 3,
    "plateau_threshold": 0.01,
    "plateau_threshold_mode": "abs",
    "plateau_cooldown": 2,
    "step_size": 10.0,
    "step_gamma": 0.5,
    "exponential_gamma": 0.9,
    "max_lr": 0.1,
    "pct_start": 0.2,
    "anneal_strategy": "linear",
    "div_factor": 10.0,
    "final_div_factor": 100.0,
    "use_early_stopping": True,
    "early_stopping_monitor": "val_f1",
    "early_stopping_mode": "max",
    "early_stopping_patience": 2,
    "early_stopping_min_delta": 0.01,
    "early_stopping_restore_best": True,
    "save_frequency": 2,
    "save_minutes": 0.5,
    "max_skipped_steps": 3,
    "max_to_keep": 3,
    "vis_save_frequency": 0,
    "profile_steps": (2, 5),
    "gap_scores": False,
    "boundary_tolerance": 1,
    "use_progress_bar": False,
    "use_tensorboard": False,
    "compilation_cache_dir": "cache",
    "figure_tiles": 0,
}
NAMES = [field.name for field in dataclasses.fields(Config)]

# A wrong value for settings of every kind: what is raised, and what the message says is allowed.
WRONG = [
    ("epochs", 0, ValueError, "1 or more"),
    ("epochs", 3.0, TypeError, "must be int, not float"),
    ("epochs", True, TypeError, "must be int, not bool"),
    ("epochs", "3", TypeError, "must be int, not str"),
    ("epochs", None, TypeError, "must be int"),
    ("seed", -1, ValueError, "0 or more"),
    ("learning_rate", 0, ValueError, "above 0"),
    ("learning_rate", float("nan"), ValueError, "above 0"),
    ("learning_rate", float("inf"), ValueError, "above 0"),
    ("learning_rate", "1e-3", TypeError, "must be float, not str"),
    ("learning_rate", True, TypeError, "must be float, not bool"),
    ("learning_rate", np.bool_(True), TypeError, "must be float"),
    ("learning_rate", np.ones(2), TypeError, "must be float"),
    ("weight_decay", -0.1, ValueError, "0 or more"),
    ("dropout", 1.0, ValueError, "from 0 to below 1"),
    ("loss_alpha", 1.01, ValueError, "from 0 to 1"),
    ("loss_alpha", float("nan"), ValueError, "from 0 to 1"),
    ("focal_alpha", 2.0, ValueError, "from 0 to 1"),
    ("norm", "layer", ValueError, "one of 'batch', 'group'"),
    ("droppath_final_prob", 1.1, ValueError, "from 0 to 1"),
    ("plateau_factor", 1.0, ValueError, "between 0 and 1"),
    ("profile_steps", (1, 2, 3), ValueError, "must be 2 values"),
    ("threshold_weight_adjustment", [1.0], TypeError, "must be a table of names and values"),
    ("threshold_weight_adjustment", {5: 0.0}, ValueError, "above 0"),
    ("threshold_weight_adjustment", {"five": 1.0}, TypeError, "must be a number"),
    ("optimizer", "Adam", ValueError, "one of 'adam', 'adamw', 'sgd'"),
    ("loss_type", None, ValueError, "one of 'combined_focal_dice', 'focal', 'dice', 'bce'"),
    ("augment", 1, TypeError, "must be bool, not int"),
    ("augment_tilt", 61.0, ValueError, "from 0 to 60 degrees"),
    ("augment_height", (0.0, 1.0), ValueError, "above 0"),
    ("augment_resolution", 0.0, ValueError, "from 0.1 to 1"),
    ("augment_missing", 1.0, ValueError, "from 0 to below 1"),
    ("name", 5, TypeError, "must be str, not int"),
    ("name", "a/b", ValueError, "a plain folder name"),
    ("name", "..", ValueError, "a plain folder name"),
    ("thresholds", 5.0, TypeError, "must be a list"),
    ("thresholds", "5", TypeError, "must be a list"),
    ("thresholds", (5.0, -1.0), ValueError, "above 0"),
    ("thresholds", (5.0, "x"), TypeError, "must be float, not str"),
    ("threshold_range", (5.0,), ValueError, "must be 2 values"),
    ("thresholds_per_tile", 0, ValueError, "1 or more"),
    ("thresholds_per_tile", 2.0, TypeError, "must be int, not float"),
    ("adam_betas", (0.9, 0.99, 0.999), ValueError, "must be 2 values"),
    ("virtual_slope", (10.0, 60.0), ValueError, "from 0 to 45 degrees"),
    ("opening_windows", (3, 4), ValueError, "odd, 3 or more"),
    ("opening_windows", (1,), ValueError, "odd, 3 or more"),
    ("opening_windows", (5.0,), TypeError, "must be int, not float"),
    ("virtual_resolution", (0.05, 1.0), ValueError, "from 0.1 to 5 m"),
    ("virtual_resolution", 1.0, TypeError, "must be a list of 2 values"),
    ("virtual_closure", (0.5, 1.1), ValueError, "from 0 to 1"),
    ("virtual_height", (5.0, 30.0), ValueError, "from 8 to 90 m"),
    ("virtual_share", 1.0, ValueError, "from 0 to below 1"),
    ("site_weights", (1.0, -1.0), ValueError, "0 or more"),
    ("chm_only", "a.tif", TypeError, "must be a list"),
    ("dsm", "a.tif", TypeError, "must be a list"),
    ("dsm", Path("a.tif"), TypeError, "must be a list"),
    ("dsm", [3], TypeError, "must be str, not int"),
]
EACH_WRONG = pytest.mark.parametrize(
    ("name", "value", "error", "allowed"), WRONG, ids=[f"{name}={value!r}" for name, value, *_ in WRONG]
)


# Unknown names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("epoch", "epochs"), ("learning_rates", "learning_rate"), ("treshold_range", "threshold_range")],
)
def test_unknown_setting_is_refused_with_the_nearest_name(name, nearest, tmp_path):
    said = f"no setting '{name}'; did you mean '{nearest}'"
    with pytest.raises(AttributeError, match=said):
        setattr(Config(), name, 1)
    with pytest.raises(TypeError, match=said):
        Config(**{name: 1})
    with pytest.raises(TypeError, match=said):
        dataclasses.replace(Config(), **{name: 1})
    path = tmp_path / "run.toml"
    path.write_text(f"{name} = 1\n")
    with pytest.raises(ValueError, match=f"run.toml.*{said}"):
        Config.from_toml(path)
    path.write_text("epochs = 1\n")
    with pytest.raises(ValueError, match=said):
        Config.from_toml(path, **{name: 1})


def test_a_name_near_to_none_points_to_the_list():
    with pytest.raises(AttributeError, match=r"'xyzzy'; forestgaps-jax train --help lists all"):
        Config().xyzzy = 1


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("gamma", ["step_gamma", "exponential_gamma", "focal_gamma"]),
        ("factor", ["plateau_factor"]),
        ("mode", ["plateau_mode"]),
        ("threshold", ["plateau_threshold", "thresholds"]),
        ("lr", ["learning_rate"]),
        ("gradient_checkpointing", ["remat"]),
        ("drop_path_rate", ["use_droppath", "droppath_final_prob"]),
        ("LOGS_DIR", ["runs_dir", "name"]),
        ("save_best_only", ["save_frequency", "max_to_keep"]),
        ("mixed_precision", ["precision"]),
    ],
)
def test_names_of_the_original_lead_to_those_here(name, here):
    with pytest.raises(TypeError, match=f"no setting '{name}'; here that is") as caught:
        Config(**{name: 1})
    words = set(re.findall(r"\w+", str(caught.value)))
    assert words >= set(here)
    assert set(here) <= set(NAMES)


def test_reading_an_unknown_setting_is_an_attribute_error():
    with pytest.raises(AttributeError):
        Config().epoch  # noqa: B018


# Wrong values


@EACH_WRONG
def test_wrong_value_is_refused_with_field_value_and_what_is_allowed(name, value, error, allowed):
    config = Config()
    with pytest.raises(error) as assigned:
        setattr(config, name, value)
    with pytest.raises(error) as constructed:
        Config(**{name: value})
    assert str(assigned.value) == str(constructed.value)
    assert str(assigned.value).startswith(name)
    assert allowed in str(assigned.value)
    assert getattr(config, name) == getattr(Config(), name)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("epochs = 0", ValueError, "epochs = 0: must be 1 or more"),
        ("epochs = 'x'", (ValueError, TypeError), "epochs = 'x': must be int"),
        ("epochs = ", ValueError, "not valid TOML"),
        ("tile_size = 100", ValueError, "tile_size = 100 does not fit depth = 4"),
        ("[training]\nepochs = 1", ValueError, "no setting 'training'"),
        ("epochs = 1\nepochs = 2", ValueError, "not valid TOML"),
    ],
)
def test_errors_of_a_file_name_the_file(text, error, said, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(error, match=f"run.toml.*{said}"):
        Config.from_toml(path)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes('name = "Forêt"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.toml"):
        Config.from_toml(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        Config.from_toml(tmp_path / "none.toml")


# Accepted values


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("epochs", np.int64(3), 3),
        ("epochs", np.uint8(3), 3),
        ("learning_rate", 1, 1.0),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", np.float64(0.5), 0.5),
        ("learning_rate", np.int32(2), 2.0),
        ("augment", np.bool_(False), False),
        ("thresholds", np.array([5, 10]), (5.0, 10.0)),
        ("thresholds", [5], (5.0,)),
        ("dsm", [Path("a") / "b.tif"], (str(Path("a") / "b.tif"),)),
        ("dsm", dict.fromkeys(["x.tif"]).keys(), ("x.tif",)),
        ("runs_dir", Path("runs"), "runs"),
        ("focal_alpha", None, None),
        ("focal_alpha", 0, 0.0),
        ("threshold_range", None, None),
        ("threshold_range", [2, 30], (2.0, 30.0)),
    ],
    ids=str,
)
def test_what_means_the_same_is_kept_as_the_plain_type(name, given, kept):
    config = Config()
    setattr(config, name, given)
    value = getattr(config, name)
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, tuple):
        assert [type(item) for item in value] == [type(item) for item in kept]


# Files


def test_the_changed_settings_are_all_settings_and_no_defaults():
    assert sorted(CHANGED) == sorted(NAMES)
    for name, default in Config().to_dict().items():
        assert CHANGED[name] != default, name


@pytest.mark.parametrize("given", [{}, CHANGED, {"threshold_range": (1.0, 2.0)}], ids=["none", "all", "one"])
def test_toml_gives_back_every_setting(given, tmp_path):
    config = Config(**given)
    config.to_toml(tmp_path / "run.toml")
    assert Config.from_toml(tmp_path / "run.toml") == config


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, exclude_min=True, allow_infinity=False)
)
@example("".join(map(chr, range(256))), 5e-324)
def test_toml_gives_back_any_text_and_number(tmp_path, text, number):
    path = tmp_path / "run.toml"
    config = Config(
        runs_dir=text, learning_rate=number, min_lr=0.0, warmup_start_lr=0.0, dsm=(text,), chm=(text,)
    )
    config.to_toml(path)
    assert Config.from_toml(path) == config


def test_toml_tells_the_meaning_of_each_setting(tmp_path):
    Config().to_toml(tmp_path / "run.toml")
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    assert set(tomllib.loads(text)) == {n for n in NAMES if getattr(Config(), n) is not None}
    assert "# Passes over the training tiles.\nepochs = 100\n" in text


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "run.toml").write_text("epochs = 3\nbatch_size = 2\nfocal_alpha = 0.1\n")
    config = Config.from_toml(tmp_path / "run.toml", epochs=9, focal_alpha=None)
    assert config == Config(epochs=9, batch_size=2, focal_alpha=None)


def test_shipped_configurations_are_valid():
    files = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert files
    for path in files:
        assert isinstance(Config.from_toml(path), Config)


# Several settings at once


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dsm": ["a.tif"]}, "1 DSM and 0 CHM"),
        ({"thresholds": ()}, "thresholds = .*at least 1 cm apart"),
        ({"thresholds": (5, 5.0)}, "thresholds = .*at least 1 cm apart"),
        ({"threshold_range": (10, 5)}, "threshold_range = .*the first must be the lower"),
        ({"threshold_range": (5, 5)}, "threshold_range = .*the first must be the lower"),
        (
            {"thresholds": (5, 10), "thresholds_per_tile": 3},
            "thresholds_per_tile = 3: there are 2 thresholds; list more, or set threshold_range",
        ),
        ({"tile_size": 24, "depth": 4}, "tile_size = 24 .*depth = 4.*multiple of 16"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction .*test_fraction must be below 1"),
        ({"min_lr": 0.1, "learning_rate": 0.01}, "min_lr = 0.1 .*learning_rate = 0.01"),
        (
            {"warmup_start_lr": 0.1, "learning_rate": 0.01, "scheduler_type": "cosine_warm"},
            "warmup_start_lr = 0.1 .*learning_rate = 0.01.*'cosine_warm'",
        ),
        ({"threshold_weight_adjustment": {7: 2.0}}, "threshold_weight_adjustment names 7 m"),
        ({"loss_type": "adaptive", "adaptive_weights": (1.0,)}, "adaptive_weights .*one for each"),
        ({"loss_type": "adaptive", "use_focal": False, "use_dice": False}, "use_focal, use_dice or use_bce"),
        ({"profile_steps": (5, 2)}, "profile_steps = .*the first must be the lower"),
        *(
            ({name: ends}, rf"{name} = .*: the first must not be above the second")
            for name, ends in {
                "virtual_resolution": (2.0, 0.5),
                "virtual_slope": (30.0, 10.0),
                "virtual_closure": (0.9, 0.5),
                "virtual_height": (30.0, 10.0),
                "augment_height": (1.5, 0.5),
            }.items()
        ),
        (
            {"dsm": ["a"], "chm": ["b"], "chm_only": ["c"], "site_weights": (1.0,)},
            r"site_weights = \(1.0,\): must be one for each of 1 dsm and 1 chm_only",
        ),
        ({"chm_only": ["c"], "site_weights": (1, 1)}, "one for each of 0 dsm and 1 chm_only"),
        ({"site_weights": (0.0, 0.0)}, r"site_weights = \(0.0, 0.0\): one must be above 0"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(given, said, tmp_path):
    config = Config(**given)
    with pytest.raises(ValueError, match=said):
        config.validate()
    config.to_toml(tmp_path / "run.toml")
    with pytest.raises(ValueError, match=f"run.toml.*{said}"):
        Config.from_toml(tmp_path / "run.toml")


@pytest.mark.parametrize(
    "given",
    [
        {},
        CHANGED,
        {"thresholds": (5, 10), "thresholds_per_tile": 2},
        {"thresholds": (5,), "threshold_range": (2, 30), "thresholds_per_tile": 8},
        {"thresholds": (5.0, 5.01, 5.02)},
        {"tile_size": 24, "depth": 3},
        {"val_fraction": 0.0, "test_fraction": 0.99},
        {"virtual_slope": (20.0, 20.0), "virtual_resolution": (0.5, 0.5)},
        {"chm_only": ["c"], "site_weights": (2.0,), "virtual_share": 0.5},
        {"site_weights": (2.0, 1.0)},
        {"virtual_share": 0.5},
        {"learning_rate": 1e-7, "scheduler_type": "constant"},
        {"learning_rate": 1e-5, "warmup_start_lr": 1e-4, "scheduler_type": "plateau"},
    ],
    ids=[
        "none",
        "all",
        "each listed threshold",
        "more of a range than are listed",
        "thresholds 1 cm apart, but for rounding",
        "tile",
        "split",
        "ranges of one value",
        "weights of rasters",
        "weights of sites unknown here",
        "a share of virtual forests",
        "rates of no schedule",
        "start of no warmup",
    ],
)
def test_settings_that_fit_each_other_are_let_through(given):
    Config(**given).validate()


# As an object


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_docstring(name):
    assert field_docs(Config).get(name, "").strip().endswith(".")


@pytest.mark.parametrize(
    "remade",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), lambda c: Config(**c.to_dict())],
    ids=["copy", "deepcopy", "pickle", "to_dict"],
)
def test_copies_are_equal_and_independent(remade):
    config = Config(**CHANGED)
    twin = remade(config)
    assert twin == config
    twin.epochs = 99
    assert config.epochs == CHANGED["epochs"]


def test_replace_checks_as_the_constructor_does():
    assert dataclasses.replace(Config(), epochs=3) == Config(epochs=3)
    with pytest.raises(ValueError, match="epochs = 0"):
        dataclasses.replace(Config(), epochs=0)
