"""Figures of a training while it runs: in the run folder and in TensorBoard."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax import figures
from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.disk import tolerated
from forestgaps_jax.callbacks.run import Run
from forestgaps_jax.callbacks.tiles import choose_tiles
from forestgaps_jax.compilation import jit
from forestgaps_jax.figures.canvas import render
from forestgaps_jax.parallel import on_one_device
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import predict_step
from forestgaps_jax.types import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureCallback(Callback):
    """Draws every ``frequency`` epochs and at the end of the training; override `draw`.

    A figure goes to ``figures/`` in the run folder as ``epoch_0003_name.png``, with epochs counted from 1,
    and to TensorBoard. A run without a folder is not drawn; without matplotlib, one warning says so.

    Args:
        frequency: epochs between figures; 0 for none.

    Raises:
        ValueError: a negative frequency.
    """

    main_only = True

    def __init__(self, frequency: int | None = 1):
        if frequency is not None and frequency < 0:
            raise ValueError(f"frequency = {frequency}: must be 0 or more")
        self.frequency = frequency

    def draw(self, epoch: int, logs: dict[str, Any]) -> None:
        """Draw an epoch, with `show`."""
        raise NotImplementedError

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """See whether there is something to draw with and to."""
        default = self.run.config.vis_save_frequency
        self._period = default if self.frequency is None else self.frequency
        self._draws = self.run.folder is not None and self._period > 0
        if self._draws and find_spec("matplotlib") is None:
            self._draws = False
            logging.getLogger(__name__).warning("no figures: pip install matplotlib")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Draw the epochs whose turn it is."""
        assert logs is not None
        if not self._draws:
            return
        last = epoch + 1 == self.run.config.epochs or self.run.stop_reason is not None
        if last or (epoch + 1) % self._period == 0:
            self.draw(epoch, logs)

    def show(self, figure: "Figure", name: str, tag: str, epoch: int) -> None:
        """Put a figure into the run folder and, under the tag, into TensorBoard."""
        assert self.run.folder is not None
        folder = self.run.folder / "figures"
        with tolerated(f"figure {name}"):
            folder.mkdir(exist_ok=True)
            figure.savefig(folder / f"epoch_{epoch + 1:04d}_{name}.png")
        if self.run.events is not None:
            self.run.events.add_image(tag, render(figure), epoch, dataformats="HWC")


class VisualizationCallback(FigureCallback):
    """Draws predictions, scores by threshold, and the course of the training.

    Files and TensorBoard tags: ``tiles`` (``val/tiles``): some validation tiles, the same in every epoch and
    spread over the thresholds; ``thresholds`` (``val/thresholds``): the validation metrics of the epoch;
    ``history`` (``history``): losses, IoU and learning rate of the epochs until now.

    Args:
        frequency: epochs between figures, 0 for none; None for ``config.vis_save_frequency``.
        tiles: tiles to draw, 0 for none; None for ``config.figure_tiles``.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, frequency: int | None = None, tiles: int | None = None):
        super().__init__(frequency)
        if tiles is not None and tiles < 0:
            raise ValueError(f"tiles = {tiles}: must be 0 or more")
        self.tiles = tiles

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the tiles of another training."""
        super().on_train_begin(logs)
        self._tiles: Batch | None = None

    def draw(self, epoch: int, logs: dict[str, Any]) -> None:
        """Draw the three figures; those of validation only where there was one."""
        count = self.run.config.figure_tiles if self.tiles is None else self.tiles
        if count and self._tiles is None and self.run.data is not None and self.run.data.val is not None:
            self._tiles = choose_tiles(self.run.data.val, count)
        metrics = logs["val_metrics"]
        if self._tiles is not None:
            predict = _gaps_of_heights if "regression" in metrics else predict_step
            self.show(_tile_figure(self.run, self._tiles, predict), "tiles", "val/tiles", epoch)
        if metrics.get("threshold_metrics"):
            figure = figures.plot_thresholds({"validation": metrics})
            self.show(figure, "thresholds", "val/thresholds", epoch)
        self.show(figures.plot_history(self.run.history), "history", "history", epoch)


class ConfusionVisualizer(FigureCallback):
    """Draws the confusion matrix of each validation: rows are the truth, columns the prediction.

    The file is ``confusion``, the TensorBoard tag ``val/confusion``.

    Args:
        frequency: epochs between figures; 0 for none, None for ``config.vis_save_frequency``.
    """

    def draw(self, epoch: int, logs: dict[str, Any]) -> None:
        """Draw the matrix where there was a validation."""
        from forestgaps_jax.figures.confusion import plot_confusion

        if matrix := logs["val_metrics"].get("confusion_matrix"):
            figure = plot_confusion(matrix, f"validation, epoch {epoch + 1}")
            self.show(figure, "confusion", "val/confusion", epoch)


def _tile_figure(run: Run, tiles: Batch, predict: Callable[..., Any]) -> "Figure":
    arrays = (jnp.asarray(tiles.dsm), jnp.asarray(tiles.threshold))
    pixels = None if tiles.resolution is None else jnp.asarray(tiles.resolution)
    probability = np.asarray(predict(on_one_device(run.state), *arrays, pixels))
    dsm, mask, valid = (np.asarray(image)[..., 0] for image in (tiles.dsm, tiles.mask, tiles.valid))
    thresholds = np.asarray(tiles.threshold).tolist()
    return figures.plot_tiles(dsm, mask, probability[..., 0], thresholds, valid)


@jit
def _gaps_of_heights(
    state: TrainState, dsm: jax.Array, threshold: jax.Array, resolution: jax.Array | None
) -> jax.Array:
    """True where the height that a regression network predicts is below the threshold."""
    told = state.told(resolution)
    heights, _ = state.apply(state.scored_params, state.model_state, dsm, None, **told)
    return heights < threshold[:, None, None, None]
