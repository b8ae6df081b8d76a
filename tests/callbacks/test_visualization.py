import logging
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Config, Data, figures
from forestgaps_jax.callbacks import (
    ConfusionVisualizer,
    LambdaCallback,
    LoggingCallback,
    VisualizationCallback,
)
from forestgaps_jax.callbacks.tiles import choose_tiles
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.figures.canvas import render
from forestgaps_jax.steps import predict_step
from tests.callbacks.driving import drive, new_run, read_events, scores
from tests.conftest import DRAWN


@pytest.fixture
def config(config):
    return replace(config, **DRAWN)


def drawn(folder) -> set[str]:
    return {path.name for path in (folder / "figures").glob("*")} if (folder / "figures").is_dir() else set()


def batch(thresholds, valid=None) -> dict:
    """Tiles whose heights tell them apart: the first is 1, the second 2, ..."""
    dsm = np.arange(1, len(thresholds) + 1, dtype=np.float32)[:, None, None, None] * np.ones((1, 16, 16, 1))
    item = {"dsm": dsm, "mask": np.zeros_like(dsm), "threshold": np.array(thresholds)}
    return item if valid is None else item | {"valid": valid}


def test_figures_come_every_few_epochs_and_at_the_end_to_the_folder_and_to_tensorboard(
    state, config, data, tmp_path
):
    run = new_run(state, replace(config, epochs=3), data, tmp_path, steps=1)
    drive(run, [LoggingCallback(), VisualizationCallback(frequency=2, tiles=2)], [scores()] * 3)
    names = ("tiles", "thresholds", "history")
    assert drawn(tmp_path) == {f"epoch_000{n}_{name}.png" for n in (2, 3) for name in names}
    images = {k: v.image for k, v in read_events(tmp_path).items() if v.WhichOneof("value") == "image"}
    assert images.keys() == {(tag, n) for n in (1, 2) for tag in ("val/tiles", "val/thresholds", "history")}
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images.values())
    image = images["history", 2]
    height, width, channels = render(figures.plot_history(run.history)).shape
    assert (image.width, image.height, image.colorspace) == (width, height, channels)


def test_the_tiles_shown_are_the_same_in_every_epoch_with_the_predictions_of_now(
    state, config, data, tmp_path, monkeypatch
):
    shown = []
    real = figures.plot_tiles
    monkeypatch.setattr(figures, "plot_tiles", lambda *given: shown.append(given) or real(*given))
    run = new_run(state, config, data, tmp_path, steps=1)
    states = []
    keep = LambdaCallback(on_epoch_end=lambda *_: states.append(jax.tree.map(np.asarray, run.state.params)))
    drive(run, [keep, VisualizationCallback(1, tiles=2)], [scores(), scores()])
    (dsm, mask, first, thresholds, valid), (later_dsm, _, second, _, _) = shown
    assert thresholds == [5.0, 15.0]
    assert dsm.shape == mask.shape == first.shape == valid.shape == (2, 16, 16)
    np.testing.assert_array_equal(dsm, later_dsm)
    for params, probability in zip(states, (first, second), strict=True):
        at = replace(run.state, params=params)
        expected = predict_step(at, dsm[..., None], np.array(thresholds, np.float32))
        np.testing.assert_allclose(probability, expected[..., 0], rtol=1e-5)


def test_the_settings_say_how_often_and_how_many(state, config, data, tmp_path):
    settings = replace(config, epochs=9, vis_save_frequency=2, figure_tiles=0)
    drive(new_run(state, settings, data, tmp_path, steps=1), [VisualizationCallback()], [scores()] * 3)
    assert drawn(tmp_path) == {"epoch_0002_thresholds.png", "epoch_0002_history.png"}


def test_an_epoch_that_was_stopped_is_drawn(state, config, data, tmp_path):
    run = new_run(state, replace(config, epochs=9), data, tmp_path, steps=1)
    stop = LambdaCallback(on_epoch_end=lambda *_: run.stop("enough"))
    drive(run, [stop, VisualizationCallback(5, tiles=0)], [scores()])
    assert drawn(tmp_path) == {"epoch_0001_thresholds.png", "epoch_0001_history.png"}


def test_without_validation_only_the_history_is_drawn(state, config, data, tmp_path):
    run = new_run(state, config, Data(train=data.train), tmp_path, steps=1)
    drive(run, [VisualizationCallback(2), ConfusionVisualizer()], [{}, {}])
    assert drawn(tmp_path) == {"epoch_0002_history.png"}


def test_heights_of_a_regression_are_drawn_as_gaps(state, config, data, tmp_path, monkeypatch):
    def apply(params, model_state, dsm, threshold):
        assert threshold is None
        return 0.0 * dsm + 10.0, model_state

    shown = []
    run = new_run(replace(state, apply=apply), replace(config, epochs=1), data, tmp_path, steps=1)
    blank = figures.plot_history(run.history)
    monkeypatch.setattr(figures, "plot_tiles", lambda *given: shown.append(given) or blank)
    drive(run, [VisualizationCallback(1, tiles=2)], [scores(regression={"rmse": 1.0})])
    ((dsm, _, probability, thresholds, _),) = shown
    known = np.isfinite(dsm)
    np.testing.assert_array_equal(probability[known], np.broadcast_to([[[0.0]], [[1.0]]], dsm.shape)[known])
    assert thresholds == [5.0, 15.0]


@pytest.mark.parametrize("heights", [False, True], ids=["gaps", "heights"])
def test_tiles_are_drawn_with_the_size_of_their_pixels(state, config, tmp_path, monkeypatch, heights):
    def apply(params, model_state, dsm, threshold, resolution=None):
        """Gap, or lower than 5 m, where the pixel is wider than 1 m."""
        wide = jnp.where(resolution[:, None, None, None] > 1.0, 1.0, -1.0) * jnp.ones_like(dsm)
        return (5.0 - wide if heights else wide), model_state

    shown, source = [], [batch([5.0, 5.0, 5.0]) | {"resolution": [2.0, 0.5, 1.5]}]
    run = new_run(replace(state, apply=apply), replace(config, epochs=1), Data(source, source), tmp_path)
    blank = figures.plot_history(run.history)
    monkeypatch.setattr(figures, "plot_tiles", lambda *given: shown.append(given) or blank)
    metrics = scores(regression={"rmse": 1.0}) if heights else scores()
    drive(run, [VisualizationCallback(1, tiles=3)], [metrics])
    ((_, _, probability, _, _),) = shown
    assert (probability > 0.5).all(axis=(1, 2)).tolist() == [True, False, True]


@pytest.mark.parametrize("frequency", [0, 1])
def test_the_confusion_matrix_is_drawn(state, config, tmp_path, frequency):
    run = new_run(state, replace(config, epochs=1), None, tmp_path, steps=1)
    drive(run, [LoggingCallback(), ConfusionVisualizer(frequency)], [scores()])
    assert drawn(tmp_path) == ({"epoch_0001_confusion.png"} if frequency else set())
    assert (("val/confusion", 0) in read_events(tmp_path)) == (frequency == 1)


def test_a_run_without_a_folder_draws_nothing(state, config, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drive(new_run(state, config, data, steps=1), [VisualizationCallback(1)], [scores()])
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_one_warning_is_all(state, config, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = new_run(state, config, data, tmp_path, steps=1)
    with caplog.at_level(logging.WARNING):
        drive(run, [VisualizationCallback(1)], [scores(), scores()])
    assert [record.message for record in caplog.records] == ["no figures: pip install matplotlib"]
    assert len(run.history["lr"]) == 2
    assert drawn(tmp_path) == set()


@pytest.mark.parametrize("arguments", [{"frequency": -1}, {"tiles": -2}], ids=str)
def test_negative_numbers_are_refused(arguments):
    with pytest.raises(ValueError, match=r"= -\d: must be 0 or more"):
        VisualizationCallback(**arguments)


def test_tiles_of_batches_are_spread_over_the_thresholds():
    tiles = choose_tiles([batch([20.0, 5.0, 10.0, 5.0, 10.0, 20.0]), batch([99.0])], 3)
    assert tiles.threshold.tolist() == [5.0, 10.0, 20.0]
    assert set(tiles.dsm[:, 0, 0, 0]) <= {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    assert len(set(tiles.dsm[:, 0, 0, 0])) == 3


def test_tiles_without_a_valid_pixel_are_not_shown():
    valid = np.ones((4, 16, 16, 1), bool)
    valid[[0, 2]] = False
    tiles = choose_tiles([batch([5.0] * 4, valid)], 4)
    np.testing.assert_array_equal(tiles.dsm[:, 0, 0, 0], [2, 4])
    assert choose_tiles([batch([5.0] * 4, np.zeros_like(valid))], 4) is None


def test_tiles_of_a_sampler_that_asks_for_several_thresholds_are_shown_one_by_one():
    config = Config(tile_size=16, split_buffer=0.0, thresholds_per_tile=3, thresholds=(5.0, 10.0, 15.0))
    sampler = create_data([virtual_forest(0, (64, 64))], config).train
    tiles = choose_tiles(sampler, 4)
    assert tiles.threshold.shape == (4,)
    assert tiles.dsm.shape == tiles.mask.shape == (4, 16, 16, 1)


def keys(tiles) -> list[tuple]:
    """What tells tiles apart."""
    parts = zip(tiles.threshold, tiles.dsm, tiles.mask, tiles.valid, strict=True)
    return [(float(t), *(np.asarray(image).tobytes() for image in images)) for t, *images in parts]


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_tiles_of_a_sampler_are_its_own_and_spread_over_its_thresholds(data, count):
    tiles = choose_tiles(data.val, count)
    every = [jax.device_get(data.val.sample(jnp.int32(step))) for step in range(data.val.steps_per_epoch)]
    known = {key for b in every for key in keys(b)}
    chosen = keys(tiles)
    usable = sum(bool(v.any()) for b in every for v in b.valid)
    assert len(chosen) == len(set(chosen)) == min(count, usable)
    assert set(chosen) <= known
    assert tiles.valid.any(axis=(1, 2, 3)).all()
    assert len(set(tiles.threshold.tolist())) == min(count, 2)


def test_chosen_tiles_keep_the_size_of_their_pixels(data):
    first = batch([20.0, 5.0, 10.0]) | {"resolution": [2.0, 0.5, 1.0]}
    tiles = choose_tiles([first], 2)
    assert (tiles.threshold.tolist(), tiles.resolution.tolist()) == ([5.0, 20.0], [0.5, 2.0])
    assert choose_tiles([batch([5.0])], 1).resolution is None
    assert choose_tiles(data.val, 3).resolution.tolist() == [1.0] * 3
