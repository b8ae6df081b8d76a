"""Steps whose loss or gradient is not finite: skipped, counted, and at last an error that tells all."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import TrainState, create_state, evaluate, train
from forestgaps_jax.checkpoint import restore_one
from forestgaps_jax.cli import main
from forestgaps_jax.divergence import DivergenceError, read_batch
from forestgaps_jax.loss import BCELoss
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.replay import replay
from forestgaps_jax.steps import train_step
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Batch
from tests.callbacks.test_resumption import StopAt
from tests.conftest import TINY

HUGE = np.float32(3e38)


def same(a, b) -> bool:
    """Whether two trees are the same, bit for bit."""
    leaves = jax.tree.leaves(a), jax.tree.leaves(b)
    return all(np.array_equal(one, other) for one, other in zip(*leaves, strict=True))


def batches(bad: set[int], count: int = 8) -> list[dict]:
    """Batches of one tile size; the bad ones hold heights that no network bears."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        dsm = rng.normal(300, 10, (4, 16, 16, 1)).astype(np.float32)
        if number in bad:
            dsm[0, 3, 3] = HUGE
            dsm[1, 5, 5] = -HUGE
        mask = (rng.random(dsm.shape) < 0.3).astype(np.float32)
        made.append({"dsm": dsm, "mask": mask, "threshold": 5.0})
    return made


SETTINGS = replace(TINY, epochs=1, monitor_gradients=True, ema_decay=0.9, use_gradient_clipping=True)


@pytest.fixture
def state() -> TrainState:
    return create_state(create_model_from_config(SETTINGS), SETTINGS)


def test_a_step_that_is_not_finite_moves_nothing_but_its_counters(state):
    step = jax.jit(train_step(make_recipe(SETTINGS, 4)))
    totals = Totals.zeros(SETTINGS.thresholds, training=True, norms=True)
    good, bad = (
        Batch(item["dsm"], item["mask"], np.full(4, 5.0, np.float32)) for item in batches({1}, count=2)
    )
    one, totals_one, logs = step(state, totals, good)
    assert (int(one.skipped), int(logs.skipped_in_a_row)) == (0, 0)
    two, totals_two, logs = step(one, totals_one, bad)
    assert not np.isfinite(float(logs.loss)) or not np.isfinite(float(logs.grad_norm))
    assert (int(two.step), int(two.skipped), int(two.skipped_in_a_row)) == (2, 1, 1)
    for part in ("params", "model_state", "opt_state", "ema_params", "loss_params"):
        assert same(getattr(one, part), getattr(two, part)), part
    assert int(totals_two.skipped) == 1
    assert same(replace(totals_two, skipped=totals_one.skipped), totals_one)
    three, _, logs = step(two, totals_two, good)
    assert (int(three.skipped), int(three.skipped_in_a_row)) == (1, 0)


def test_what_follows_a_skipped_batch_is_as_if_it_had_not_been(state):
    """But for the random keys, of which this network takes none, that go by the batch."""
    data = batches({2, 5})
    config = replace(SETTINGS, scheduler_type="constant")
    with_bad, history = train(state, config, {"train": data})
    without, expected = train(state, config, {"train": [b for i, b in enumerate(data) if i not in (2, 5)]})
    assert same(with_bad.params, without.params)
    assert same(with_bad.ema_params, without.ema_params)
    assert history["train_metrics"][0].pop("skipped_steps") == 2
    assert expected["train_metrics"][0].pop("skipped_steps") == 0
    assert history["train_metrics"] == expected["train_metrics"]
    assert int(with_bad.step) == 8


def test_the_learning_rate_that_is_told_is_the_one_that_the_optimizer_uses(state):
    """A schedule goes by the steps that were taken."""
    config = replace(SETTINGS, optimizer="sgd", momentum=0.0, weight_decay=0.0, use_gradient_clipping=False)
    config = replace(config, scheduler_type="exponential", exponential_gamma=0.1)
    state = create_state(create_model_from_config(config), config)
    step = jax.jit(train_step(make_recipe(config, 4)))
    for item in batches({0, 1}, count=4):
        batch = Batch(item["dsm"], item["mask"], np.full(4, 5.0, np.float32))
        before = state.params
        totals = Totals.zeros(config.thresholds, training=True, norms=True)
        state, _, logs = step(state, totals, batch)
    moved = np.sqrt(
        sum(
            np.sum(np.square(np.float64(b) - np.float64(a)))
            for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)
        )
    )
    np.testing.assert_allclose(moved / float(logs.grad_norm), float(logs.lr), rtol=1e-3)
    np.testing.assert_allclose(float(logs.lr), config.learning_rate * 0.1**0.25, rtol=1e-5)


def test_too_many_in_a_row_end_the_training_with_the_batch_of_the_last(state, tmp_path):
    config = replace(SETTINGS, max_skipped_steps=3)
    train(state, config, {"train": batches({1, 2, 4, 5})})  # never three in a row
    with pytest.raises(DivergenceError) as caught:
        train(state, config, {"train": batches({1, 3, 4, 5})}, folder=tmp_path)
    message = str(caught.value)
    for part in ("3 steps in a row", "up to step 5", "learning rate", "gradient norm", "4 given tiles"):
        assert part in message
    folder = tmp_path / "diverged_step_5"
    assert caught.value.folder == folder
    assert f"forestgaps-jax replay {folder}" in message
    np.testing.assert_array_equal(read_batch(folder).dsm, batches({5})[5]["dsm"])
    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["skipped_in_a_row"]) == (5, 3)
    kept = restore_one(folder / "state", state).state
    before, _ = train(state, config, {"train": batches({1, 3, 4, 5})}, [StopAt(0, 2)])
    assert same(kept.params, before.params)
    assert (int(kept.step), int(before.step)) == (5, 3)


def test_nothing_moves_after_a_training_has_diverged_and_before_that_is_seen(state, tmp_path):
    """The host sees a step when two more are on their way; these are of good batches here."""
    config = replace(SETTINGS, max_skipped_steps=1)
    with pytest.raises(DivergenceError, match="up to step 3 "):
        train(state, config, {"train": batches({3})}, folder=tmp_path)
    kept = restore_one(tmp_path / "diverged_step_3" / "state", state).state
    before, _ = train(state, config, {"train": batches({3})}, [StopAt(0, 2)])
    assert same(kept.params, before.params)


def test_the_last_steps_of_an_epoch_are_looked_at_too(state):
    with pytest.raises(DivergenceError, match="up to step 7"):
        train(state, replace(SETTINGS, max_skipped_steps=1), {"train": batches({7})})


def test_without_a_folder_nothing_is_written(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DivergenceError) as caught:
        train(state, replace(SETTINGS, max_skipped_steps=2), {"train": batches({1, 2})})
    assert caught.value.folder is None
    assert "replay" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_tiles_of_a_sampler_are_named_by_site_row_and_column(config, data, tmp_path, monkeypatch):
    state = create_state(create_model_from_config(config), config)

    def broken(*arguments, **options):
        logits, model_state = state.apply(*arguments, **options)
        return logits * jnp.nan, model_state

    config = replace(config, max_skipped_steps=2, name="run", runs_dir=str(tmp_path))
    with pytest.raises(DivergenceError) as caught:
        train(replace(state, apply=broken), config, data)
    names = data.train.describe(1)
    sites = {f"virtual-{seed}" for seed in (1, 2)}
    assert {name.split(" row ")[0] for name in names} <= sites
    assert all(name in str(caught.value) for name in names)
    batch, cut = read_batch(caught.value.folder), data.train.sample(jnp.int32(1))
    np.testing.assert_array_equal(batch.dsm, cut.dsm)
    places = np.asarray(data.train.places).tolist()
    for name, tile in zip(names, np.asarray(batch.dsm)[..., 0], strict=True):
        site, _, row, _, column = name.split()
        assert [int(site[-1]) - 1, int(row), int(column)] in places
        assert np.isfinite(tile).any()


def test_replay_finds_what_was_not_finite(tmp_path, capsys):
    config = replace(SETTINGS, max_skipped_steps=2, name="run", runs_dir=str(tmp_path))
    state = create_state(create_model_from_config(config), config)
    with pytest.raises(DivergenceError):
        train(state, config, {"train": batches({2, 3})})
    seen = replay(tmp_path / "run")
    assert not np.isfinite(seen.loss) or not all(np.isfinite(g).all() for g in seen.gradients.values())
    assert main(["replay", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "step 3" in printed
    assert "3e+38" in printed
    assert "not finite" in printed
    assert main(["replay", str(tmp_path)]) == 1
    assert "no training has diverged" in capsys.readouterr().err


def test_masks_on_the_device_are_looked_at_while_training_and_testing(state, config):
    data = batches(set(), count=4)
    data[1]["mask"][0, 0, 0] = 0.5
    on_device = [{name: jnp.asarray(value) for name, value in batch.items()} for batch in data]
    with pytest.raises(ValueError, match="batch 1: mask holds other values than 0 and 1 in 1 valid pixels"):
        train(state, SETTINGS, {"train": on_device})
    with pytest.raises(ValueError, match="batch 1: mask holds other values"):
        evaluate(state, SETTINGS, on_device)
    on_device[1]["valid"] = jnp.asarray(data[1]["mask"] != 0.5)
    evaluate(state, SETTINGS, on_device, loss_fn=BCELoss())
