import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from forestgaps_jax.figures import hillshade, plot_history, plot_thresholds, plot_tiles

RNG = np.random.default_rng(0)
SHAPE = (3, 16, 16)
ROWS, COLUMNS = np.mgrid[0:16, 0:16].astype(np.float32)


def assert_drawn(figure, panels):
    """It saves to a PNG and has this many panels, besides colour bars."""
    assert isinstance(figure, Figure)
    assert len([axis for axis in figure.axes if axis.get_label() != "<colorbar>"]) == panels
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")
    assert len(file.getvalue()) > 2000


def metrics(iou=0.5):
    per_threshold = {t: {"iou": iou + t / 100, "f1": iou} for t in (5.0, 10.0, 20.0)}
    return {"iou": iou, "loss": 0.3, "threshold_metrics": per_threshold}


def shade(east=0.0, south=0.0, resolution=1.0):
    """Brightness of a plane that rises by these per metre; the same everywhere."""
    found = hillshade(500 + resolution * (east * COLUMNS + south * ROWS), resolution)
    np.testing.assert_allclose(found, found[0, 0], atol=1e-4)
    return found[0, 0]


def test_flat_ground_is_lit_evenly():
    assert shade() == pytest.approx(np.sin(np.radians(45)))


def test_light_comes_from_the_north_west():
    """A slope that rises to the south-east faces north-west."""
    faces = {"nw": shade(1, 1), "ne": shade(-1, 1), "sw": shade(1, -1), "se": shade(-1, -1)}
    assert faces["nw"] > faces["ne"] == pytest.approx(faces["sw"])
    assert faces["sw"] > faces["se"]
    assert shade(1, 0) > shade() > shade(-1, 0)
    assert shade(0, 1) > shade() > shade(0, -1)


def test_relief_is_steepness_whatever_the_pixel():
    assert shade(0.7, -0.2, resolution=0.5) == pytest.approx(shade(0.7, -0.2, resolution=2.0), rel=1e-4)


def test_shade_stays_between_0_and_1_on_cliffs():
    found = hillshade(RNG.uniform(0, 500, (40, 40)))
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("hole", [np.s_[5, 7], np.s_[5:9, 7:12], np.s_[0, 0]])
def test_unknown_surface_has_no_shade_and_spoils_no_more_than_its_neighbours(hole):
    dsm = ROWS + 0.5 * COLUMNS
    clean = hillshade(dsm)
    dsm[hole] = np.nan
    found = hillshade(dsm)
    assert np.isnan(found[hole]).all()
    grown = np.pad(np.isnan(dsm), 1)
    near = grown[1:-1, 1:-1] | grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]
    np.testing.assert_allclose(found[~near], clean[~near], atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.bool_], ids=["float", "bool"])
@pytest.mark.parametrize("count", [1, 3])
def test_tiles_are_drawn_four_panels_a_row(kind, count):
    dsm = RNG.uniform(300, 320, SHAPE).astype(np.float32)[:count]
    truth, valid = (RNG.uniform(size=dsm.shape) < 0.5).astype(kind), (RNG.uniform(size=dsm.shape) < 0.9)
    probability = RNG.uniform(size=dsm.shape).astype(np.float32)
    assert_drawn(
        plot_tiles(dsm, truth, probability, [5.0, 10.0, 20.0][:count], valid.astype(kind)), 4 * count
    )


def test_tiles_are_drawn_without_a_mask_and_with_unknown_surface():
    dsm = RNG.uniform(300, 320, SHAPE).astype(np.float32)
    dsm[0, :4] = np.nan
    dsm[1] = np.nan
    truth = (RNG.uniform(size=SHAPE) < 0.5).astype(np.float32)
    figure = plot_tiles(dsm, truth, truth, [5.0, 10.0, 20.0])
    assert_drawn(figure, 12)


def test_errors_are_told_apart():
    """Right gap, right canopy, false gap, missed gap, not valid: one column each."""
    truth = np.array([[[1, 0, 0, 1, 1]] * 4], np.float32)
    probability = np.array([[[0.9, 0.1, 0.9, 0.1, 0.9]] * 4], np.float32)
    valid = np.array([[[1, 1, 1, 1, 0]] * 4], np.float32)
    figure = plot_tiles(np.zeros((1, 4, 5), np.float32), truth, probability, [5.0], valid)
    (panel,) = (axis for axis in figure.axes if axis.get_title() == "errors")
    (image,) = panel.get_images()
    shown = image.get_array()
    colours = image.cmap(image.norm(np.ma.filled(shown, 0)))[0, :4]
    legend = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["right: gap", "right: canopy", "false gap", "missed gap"]
    np.testing.assert_allclose(colours, legend)
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[:, 4].all()


def test_thresholds_get_a_panel_a_metric_and_a_line_a_predictor():
    scores = {"model": metrics(0.7), "opening": metrics(), "all_gap": metrics(math.nan)}
    figure = plot_thresholds(scores)
    assert_drawn(figure, 2)
    iou = figure.axes[0]
    assert [line.get_label() for line in iou.lines] == ["model", "opening", "all gap"]
    np.testing.assert_allclose(iou.lines[0].get_data(), [[5, 10, 20], [0.75, 0.8, 0.9]])
    assert_drawn(plot_thresholds(scores, ["f1"]), 1)


@pytest.mark.parametrize("validated", [True, False])
def test_history_is_loss_iou_and_learning_rate(validated):
    history = {
        "train_loss": [0.9, 0.5, 0.4],
        "val_loss": [1.0, 0.6, 0.5] if validated else [math.nan] * 3,
        "train_metrics": [metrics()] * 3,
        "val_metrics": [metrics(0.4)] * 3 if validated else [{}] * 3,
        "lr": [1e-3, 5e-4, 1e-5],
        "epoch_times": [1.0] * 3,
    }
    figure = plot_history(history)
    assert_drawn(figure, 3)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_data(), [[1, 2, 3], history["train_loss"]])
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), [0.4 if validated else math.nan] * 3)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_history_of_heights_has_their_rmse_and_epochs_are_whole_numbers(epochs):
    trained = [metrics() | {"regression": {"rmse": 3.0 - epoch}} for epoch in range(epochs)]
    history = {
        "train_loss": [0.9] * epochs,
        "val_loss": [math.nan] * epochs,
        "train_metrics": trained,
        "val_metrics": [{}] * epochs,
        "lr": [1e-3] * epochs,
    }
    figure = plot_history(history)
    assert_drawn(figure, 4)
    assert [axis.get_title() for axis in figure.axes] == [
        "loss", "gap IoU", "height RMSE (m)", "learning rate",
    ]  # fmt: skip
    train, val = figure.axes[2].lines
    np.testing.assert_allclose(train.get_ydata(), [3.0 - epoch for epoch in range(epochs)])
    assert np.isnan(val.get_ydata()).all()
    for axis in figure.axes:
        ticks = axis.get_xticks()
        np.testing.assert_array_equal(ticks, ticks.round())


def test_decisions_are_not_drawn_as_probabilities():
    truth = RNG.uniform(size=SHAPE) < 0.5
    dsm = np.zeros(SHAPE, np.float32)
    figure = plot_tiles(dsm, truth, truth, [5.0, 10.0, 20.0])
    assert_drawn(figure, 12)
    titles = [axis.get_title() for axis in figure.axes]
    assert "predicted gaps" in titles
    assert "P(gap)" not in titles
    assert "P(gap)" in [axis.get_title() for axis in plot_tiles(dsm, truth, 0.5 * truth, [5.0] * 3).axes]
