"""A network that predicts canopy height, trained and scored by the same loop and tables."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from forestgaps_jax import Config, Data, TrainState, create_state, evaluate, predict, train
from forestgaps_jax.data import Rasters
from forestgaps_jax.models import create_model_from_config


@pytest.fixture(scope="module")
def settings() -> Config:
    return Config(
        epochs=8, batch_size=4, features=4, depth=1, tile_size=16, split_buffer=0.0, thresholds=(5.0, 15.0),
        learning_rate=1e-2, model_name="unet_regression", loss_type="huber", use_progress_bar=False,
        monitor_metric="val_rmse",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(settings, data) -> tuple[TrainState, dict]:
    return train(create_state(create_model_from_config(settings), settings), settings, data)


def tiles(data: Data, sites, size: int) -> tuple[np.ndarray, np.ndarray]:
    """DSM and CHM of the validation tiles."""
    cut = Rasters.from_sites(sites).cut(data.val.places, size)  # type: ignore[union-attr]
    return np.asarray(cut[..., :1]), np.asarray(cut[..., 1:])


def heights(state: TrainState, dsm: np.ndarray) -> np.ndarray:
    return np.asarray(state.apply(state.params, state.model_state, jnp.asarray(dsm), None)[0])


def test_it_learns_heights_better_than_their_mean(trained, settings, data, sites):
    _, chm = tiles(data, sites, settings.tile_size)
    _, history = trained
    assert history["val_metrics"][-1]["regression"]["mae"] < np.mean(np.abs(chm - chm.mean()))
    assert history["val_loss"][-1] < history["val_loss"][0]


def test_errors_are_those_of_scikit_learn_over_each_tile_once(trained, settings, data, sites):
    state, history = trained
    dsm, chm = tiles(data, sites, settings.tile_size)
    predicted, truth = heights(state, dsm).ravel(), chm.ravel()
    errors = history["val_metrics"][-1]["regression"]
    assert errors["n_pixels"] == truth.size
    assert errors["mae"] == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-4)
    assert errors["r2"] == pytest.approx(r2_score(truth, predicted), abs=1e-4)


def test_gaps_of_every_threshold_come_from_the_one_pass(trained, settings, data, sites):
    state, history = trained
    dsm, chm = tiles(data, sites, settings.tile_size)
    found, rows = heights(state, dsm), history["val_metrics"][-1]["threshold_metrics"]
    for threshold in settings.thresholds:
        gap, predicted = chm < threshold, found < threshold
        iou = np.sum(gap & predicted) / np.sum(gap | predicted)
        assert rows[threshold]["iou"] == pytest.approx(iou)
        assert rows[threshold]["n_samples"] == len(dsm)
    assert predict(state, dsm, 5.0).shape == dsm.shape
    np.testing.assert_array_equal(np.asarray(predict(state, dsm, 5.0)) > 0.5, found < 5.0)


def test_loaders_give_heights(trained, settings, data, sites):
    state, _ = trained
    dsm, chm = tiles(data, sites, settings.tile_size)
    metrics = evaluate(state, settings, [{"dsm": dsm, "chm": chm}])
    assert metrics["threshold_metrics"].keys() == set(settings.thresholds)
    assert metrics["regression"]["mae"] == pytest.approx(
        mean_absolute_error(chm.ravel(), heights(state, dsm).ravel()), rel=1e-4
    )
    chm = chm.copy()
    chm[0, :3] = np.nan
    assert evaluate(state, settings, [{"dsm": dsm, "chm": chm}])["regression"]["n_pixels"] == chm.size - 48


def test_batches_without_heights_are_refused(settings):
    state = create_state(create_model_from_config(settings), settings)
    batch = {"dsm": np.zeros((2, 16, 16)), "mask": np.zeros((2, 16, 16)), "threshold": 5.0}
    with pytest.raises(ValueError, match="needs batches with chm"):
        train(state, settings, {"train": [batch], "val": [batch]})


def test_threshold_weights_act_on_heights(settings, data, trained):
    config = replace(settings, epochs=1, use_threshold_weights=True)
    state = create_state(create_model_from_config(config), config)
    _, weighted = train(state, config, data)
    assert weighted["train_loss"][0] != trained[1]["train_loss"][0]


def test_a_network_of_logits_is_refused_for_a_loss_of_heights(settings):
    with pytest.raises(ValueError, match="unet_regression"):
        create_model_from_config(replace(settings, model_name="unet_film"))
