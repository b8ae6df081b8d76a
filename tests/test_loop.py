import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import f1_score, jaccard_score

from forestgaps_jax import (
    Batch,
    Callback,
    Config,
    Data,
    create_model,
    create_state,
    evaluate,
    predict,
    train,
)
from forestgaps_jax.callbacks import EVENTS
from forestgaps_jax.checkpoint import restore
from forestgaps_jax.loop import HISTORY
from forestgaps_jax.metrics import to_json
from forestgaps_jax.models import create_model_from_config


def equal(a, b) -> bool:
    """Bit-identical trees."""
    leaves = [jax.tree.leaves((tree.params, tree.model_state, tree.opt_state)) for tree in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


class StopAfter(Callback):
    """Stops after an epoch, or after a step of the run."""

    def __init__(self, epoch: int | None = None, step: int | None = None):
        self.epoch, self.step = epoch, step

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.run.stop("a test")

    def on_batch_end(self, batch, logs=None):
        if self.run.steps_per_epoch * logs["epoch"] + batch + 1 == self.step:
            self.run.stop("a test")


@pytest.fixture(scope="module")
def arrays() -> list[dict]:
    """Batches of a user's own, the last one smaller; gap is what lies in a sunken square."""
    rng, batches = np.random.default_rng(0), []
    for size in (4, 4, 3):
        dsm = 300 + rng.normal(0, 0.5, (size, 16, 16))
        mask = np.zeros(dsm.shape, np.uint8)
        for i, (row, column) in enumerate(rng.integers(0, 8, (size, 2))):
            mask[i, row : row + 8, column : column + 8] = 1
        dsm[mask == 0] += 20
        valid = rng.random(dsm.shape) < 0.9
        batches.append({"dsm": dsm, "mask": mask, "threshold": np.full(size, 5.0), "valid": valid})
    return batches


def test_training_learns_and_leaves_the_callers_state_usable(state, config, arrays):
    config = replace(config, epochs=15, batch_size=4)
    before = evaluate(state, config, arrays)
    trained, history = train(state, config, {"train": arrays, "val": arrays})
    assert history["val_loss"][-1] < 0.25 * before["loss"]
    assert history["val_metrics"][-1]["iou"] > 0.9
    assert int(trained.step) == 15 * 3
    assert int(state.step) == 0
    assert evaluate(state, config, arrays)["loss"] == before["loss"]


def test_fault_01_history_has_one_plain_entry_an_epoch(state, config, data):
    _, history = train(state, config, data)
    assert tuple(history) == HISTORY
    assert all(len(entries) == config.epochs for entries in history.values())
    assert json.loads(json.dumps(to_json(history), allow_nan=False))["lr"] == history["lr"]
    assert all(isinstance(x, float) for name in ("train_loss", "val_loss", "lr") for x in history[name])


def test_lr_of_the_history_is_that_of_the_epochs_last_step(state, config, data):
    _, history = train(state, config, data)
    total = config.epochs * data.train.steps_per_epoch
    steps = np.array([data.train.steps_per_epoch - 1, total - 1])
    low, high = config.min_lr, config.learning_rate
    expected = low + 0.5 * (high - low) * (1 + np.cos(np.pi * steps / total))
    np.testing.assert_allclose(history["lr"], expected, rtol=1e-5)


@pytest.mark.parametrize("stop", [{"epoch": 0}, {"step": 2}, {"step": 9}], ids=str)
def test_a_stopped_training_goes_on_as_if_never_stopped(state, config, data, stop):
    whole, history = train(state, config, data)
    part, _ = train(state, config, data, [StopAfter(**stop)])
    assert 0 < int(part.step) < int(whole.step)
    rest, history_of_rest = train(part, config, data)
    assert equal(rest, whole)
    assert history_of_rest["val_loss"][-1] == history["val_loss"][-1]


def test_an_iterable_stopped_within_an_epoch_goes_on_at_the_next_batch(state, config, arrays):
    whole, _ = train(state, config, {"train": arrays})
    part, _ = train(state, config, {"train": arrays}, [StopAfter(step=4)])
    assert equal(train(part, config, {"train": arrays})[0], whole)


def test_same_seed_gives_the_same_bits(state, config, data):
    assert equal(train(state, config, data)[0], train(state, config, data)[0])


def test_a_finished_training_is_returned_as_it_is(state, config, data):
    done, _ = train(state, config, data)
    again, history = train(done, config, data)
    assert equal(done, again)
    assert history["lr"] == []


def test_one_compilation_serves_all_epochs_and_the_last_smaller_batch(state, config, arrays):
    traces = []

    def counting(*args, **kwargs):
        traces.append(kwargs.get("train", False))
        return state.apply(*args, **kwargs)

    train(replace(state, apply=counting), config, {"train": arrays, "val": arrays})
    assert sorted(traces) == [False, True]


def test_the_host_waits_for_nothing_within_an_epoch(state, config, data, monkeypatch):
    array_type = type(jnp.zeros(()))
    fetch, fetched, watching = array_type._value, [], []

    class Watch(Callback):
        def on_batch_begin(self, batch, logs=None):
            watching[:] = [True]

        def on_batch_end(self, batch, logs=None):
            if batch + 1 == self.run.steps_per_epoch:
                watching.clear()

    def value(array):
        if watching:
            fetched.append((array.shape, array.is_ready()))
        return fetch.__get__(array)

    monkeypatch.setattr(array_type, "_value", property(value))
    train(state, config, data, [Watch()])
    # What a step found wrong is looked at when that step is long done: two scalars, that nobody waits for.
    assert set(fetched) <= {((), True)}
    assert len(fetched) <= 2 * config.epochs * data.train.steps_per_epoch
    fetched.clear()
    watching.append(True)
    float(jnp.ones(()) * 3)
    assert fetched, "the watch itself must see a fetch"


def test_evaluation_equals_scikit_learn_on_the_predictions(state, config, arrays):
    metrics = evaluate(state, config, arrays)
    found, gap = [], []
    for batch in arrays:
        dsm = np.where(batch["valid"], batch["dsm"], np.nan)
        probability = np.asarray(predict(state, dsm, 5.0))[..., 0]
        found.append((probability > 0.5)[batch["valid"]])
        gap.append(batch["mask"][batch["valid"]])
    found, gap = np.concatenate(found), np.concatenate(gap)
    assert metrics["iou"] == pytest.approx(jaccard_score(gap, found))
    assert metrics["f1"] == pytest.approx(f1_score(gap, found))
    assert metrics["confusion_matrix"]["total_pixels"] == gap.size == metrics["n_pixels"]
    assert metrics["confusion_matrix"]["total_gap_pixels"] == gap.sum()
    assert metrics["threshold_metrics"].keys() == {5.0}
    assert metrics["threshold_metrics"][5.0]["n_samples"] == 11


def test_fault_08_loss_of_an_epoch_weighs_every_valid_pixel_once(state, config, arrays):
    config = replace(config, loss_type="bce")
    total = sum(evaluate(state, config, [batch])["loss"] * batch["valid"].sum() for batch in arrays)
    expected = total / sum(batch["valid"].sum() for batch in arrays)
    assert evaluate(state, config, arrays)["loss"] == pytest.approx(expected, rel=1e-5)


def test_every_pixel_of_a_sampler_is_trained_and_scored_once(state, config, data, sites):
    _, history = train(state, config, data)
    size, counted = config.tile_size, []
    for places in (data.train.places, data.val.places):
        windows = [sites[s].valid[r : r + size, c : c + size] for s, r, c in np.asarray(places)]
        counted.append(int(np.sum(windows)))
    assert history["train_metrics"][0]["confusion_matrix"]["total_pixels"] == counted[0]
    validated = history["val_metrics"][0]
    assert validated["confusion_matrix"]["total_pixels"] == len(config.thresholds) * counted[1]
    assert {m["n_samples"] for m in validated["threshold_metrics"].values()} == {len(data.val.places)}


def test_without_validation_the_history_says_nan(state, config, arrays):
    _, history = train(state, config, {"train": arrays})
    assert all(math.isnan(loss) for loss in history["val_loss"])
    assert history["val_metrics"] == [{}, {}]


@pytest.mark.parametrize(
    "as_item",
    [
        lambda b: b,
        lambda b: tuple(b.values()),
        lambda b: Batch(
            **{
                k: jnp.asarray(v, jnp.float32 if k != "valid" else bool)[..., *[None] * (k != "threshold")]
                for k, v in b.items()
            }
        ),
    ],
    ids=["mapping", "tuple", "Batch"],
)
def test_batches_may_be_mappings_tuples_or_batches(state, config, arrays, as_item):
    expected = evaluate(state, config, arrays)["confusion_matrix"]
    assert evaluate(state, config, [as_item(b) for b in arrays])["confusion_matrix"] == expected


def test_predict_takes_one_threshold_or_one_a_sample(state):
    dsm = np.random.default_rng(0).normal(300, 5, (2, 8, 12)).astype(np.float32)
    one = predict(state, dsm, 5.0)
    assert one.shape == (2, 8, 12, 1)
    assert one.dtype == jnp.float32
    np.testing.assert_array_equal(one, predict(state, dsm[..., None], np.array([5.0, 5.0])))
    with pytest.raises(ValueError, match=r"threshold has shape \(3,\)"):
        predict(state, dsm, np.ones(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": []}, "yields no batch"),
        ({"train": iter([1, 2])}, "read only once"),
        ({"training": []}, "must have train"),
        ({"train": [{"dsm": np.zeros((2, 16, 16)), "masks": 1}]}, r"dsm, mask \(or chm\), threshold"),
        ({"train": [(np.zeros((2, 1, 16, 16)), np.zeros((2, 1, 16, 16)), 5.0)]}, "transpose"),
        ({"train": [(np.zeros((2, 17, 16)), np.zeros((2, 17, 16)), 5.0)]}, "multiples of 2"),
    ],
    ids=["empty", "iterator", "no train", "keys", "channels first", "odd size"],
)
def test_unusable_data_is_refused_in_words(state, config, data, message):
    with pytest.raises(ValueError, match=message):
        train(state, config, data)


def test_no_batch_to_evaluate_is_an_error(state, config):
    class Nothing:
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="no test batch"):
        evaluate(state, config, Nothing())
    with pytest.raises(ValueError, match="yields no batch"):
        evaluate(state, config, [])


def test_settings_are_checked_before_anything_runs(state, data):
    config = Config(tile_size=100, depth=3)
    with pytest.raises(ValueError, match="multiple of 8"):
        train(state, config, data)


def test_data_may_be_the_dataclass_too(state, config, arrays):
    state, _ = train(state, config, Data(train=arrays))
    assert int(state.step) == 6


def test_a_state_of_another_optimizer_is_refused_in_words(state, config, data):
    with pytest.raises(ValueError, match="another optimizer than optimizer = 'sgd'"):
        train(state, replace(config, optimizer="sgd"), data)


def test_a_loader_that_ends_early_trains_all_it_gives_and_is_named(state, config, arrays, caplog):
    class Short(list):
        def __len__(self):
            return 4

    trained, history = train(state, config, {"train": Short(arrays)})
    assert int(trained.step) == 2 * 3
    pixels = sum(int(batch["valid"].sum()) for batch in arrays)
    assert [m["confusion_matrix"]["total_pixels"] for m in history["train_metrics"]] == [pixels] * 2
    assert "gave 3 batches in epoch 1 where 4 were announced" in caplog.text


def test_a_site_may_be_trained_on_and_scored_as_it_is(state, config, sites):
    state, history = train(state, config, sites)
    assert len(history["val_loss"]) == config.epochs
    metrics = evaluate(state, config, sites[1])
    assert metrics["confusion_matrix"]["total_pixels"] == len(config.thresholds) * sites[1].dsm.size


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_tiles_without_a_valid_pixel_poison_nothing(config, arrays, norm):
    config = replace(config, norm=norm, epochs=3, batch_size=4)
    model = create_model("unet_film", rngs=nnx.Rngs(0), features=2, depth=1, norm=norm)
    one, nothing = ({**arrays[0], "valid": arrays[0]["valid"].copy()} for _ in range(2))
    one["valid"][1] = False
    nothing["valid"][:] = False
    trained, history = train(create_state(model, config), config, {"train": [arrays[0], one, nothing]})
    leaves = jax.tree.leaves((trained.params, trained.model_state, trained.opt_state))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    assert np.isfinite(history["train_loss"]).all()
    assert bool(jnp.isfinite(predict(trained, np.full((1, 16, 16), np.nan), 5.0)).all())


def test_training_data_without_a_valid_pixel_are_refused_and_such_validation_is_told(
    state, config, arrays, caplog
):
    nothing = [{**batch, "dsm": np.full_like(batch["dsm"], np.nan)} for batch in arrays]
    with pytest.raises(ValueError, match="no pixel of the training data was valid in epoch 1"):
        train(state, config, {"train": nothing})
    _, history = train(state, config, {"train": arrays, "val": nothing})
    assert np.isnan(history["val_loss"]).all()
    assert "no pixel of the validation data is valid" in caplog.text


def test_unknown_surface_counts_nowhere_even_if_called_valid(state, config, arrays):
    batch = {**arrays[0], "dsm": arrays[0]["dsm"].copy(), "valid": np.ones((4, 16, 16), bool)}
    batch["dsm"][:, :5] = np.nan
    assert evaluate(state, config, [batch])["n_pixels"] == 4 * 11 * 16
    del batch["valid"]
    assert evaluate(state, config, [batch])["n_pixels"] == 4 * 11 * 16


def test_fault_03_training_fires_each_event_once_at_its_place_and_validation_its_own(state, config, arrays):
    fired = []

    def recorder(event):
        def at(self, position, logs=None):
            fired.append((event, position, *sorted(logs)))

        def once(self, logs=None):
            fired.append((event, *sorted(logs)))

        return at if "epoch" in event or "batch" in event else once

    Record = type("Record", (Callback,), {event: recorder(event) for event in EVENTS})
    train(state, replace(config, epochs=1), {"train": arrays, "val": arrays[:1]}, [Record()])
    batch = [
        step
        for number in range(3)
        for step in (
            ("on_batch_begin", number, "epoch"),
            ("on_batch_end", number, "batch_size", "compilation", "epoch", "metrics"),
        )
    ]
    assert fired == [
        ("on_train_begin", "config", "model", "model_summary", "threshold_weights"),
        ("on_epoch_begin", 0),
        *batch,
        ("on_validation_begin",),
        ("on_validation_batch_begin", 0),
        ("on_validation_batch_end", 0, "metrics"),
        ("on_validation_end", "metrics"),
        ("on_epoch_end", 0, "epoch_time", "improved", "lr", "train_metrics", "val_metrics"),
        ("on_train_end", "best_metrics", "history", "stop_reason"),
    ]
    fired.clear()
    evaluate(state, config, arrays[:1], [Record()])
    assert [name for name, *_ in fired] == [
        "on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end",
    ]  # fmt: skip


def test_a_users_callback_joins_the_default_ones_unless_they_are_turned_off(state, config, data, tmp_path):
    config = replace(config, epochs=1, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    summaries = []

    class Mine(Callback):
        def on_train_begin(self, logs=None):
            summaries.append(logs["model_summary"])

    train(state, config, data, [Mine()])
    train(state, config, data, [Mine()], default_callbacks=False)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert {path.name for path in (tmp_path / "run-2").iterdir()} == {"config.toml", ".lock"}
    assert "parameters" in summaries[0]


def test_a_callback_asks_for_a_checkpoint_within_an_epoch(state, config, data, tmp_path):
    class Save(Callback):
        def on_batch_end(self, batch, logs=None):
            if batch == 1 and logs["epoch"] == 0:
                self.run.save()
                self.run.stop("enough for the test")

    config = replace(config, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    part, _ = train(state, config, data, [Save()])
    restored = restore(tmp_path / "run" / "checkpoints", state).state
    assert int(part.step) == int(restored.step) == 2
    whole, _ = train(state, replace(config, name=""), data)
    assert equal(train(restored, replace(config, name=""), data)[0], whole)


def test_plateau_without_what_it_follows_is_refused(config, arrays):
    config = replace(config, scheduler_type="plateau")
    state = create_state(create_model_from_config(config), config)
    with pytest.raises(ValueError, match="val_iou needs validation data"):
        train(state, config, {"train": arrays})
