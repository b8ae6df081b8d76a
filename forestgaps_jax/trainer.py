"""The names of forestgaps around `train`, `evaluate` and `predict`, for those who come from there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax import checkpoint
from forestgaps_jax.callbacks import Callback, Position
from forestgaps_jax.config import Config
from forestgaps_jax.interruption import TrainingInterrupted, TrainingTerminated
from forestgaps_jax.loop import HISTORY, evaluate, predict, train
from forestgaps_jax.loss import Loss
from forestgaps_jax.metrics import from_json, to_json
from forestgaps_jax.recipe import Optimizer
from forestgaps_jax.run_folder import new_run_folder
from forestgaps_jax.state import create_state
from forestgaps_jax.types import Data


class Trainer:
    """A model, its data and its training in one object.

    It holds a `TrainState` and calls `train`, `evaluate` and `predict`; whatever it does can be done with
    these three. A loader is anything that can be read again every epoch and yields batches: mappings
    ``{"dsm", "mask", "threshold"[, "valid"][, "resolution"]}`` or tuples
    ``(dsm, mask[, threshold[, valid]])`` of NumPy or jax arrays or CPU tensors of PyTorch, channels last
    (``[batch, height, width, 1]``) or without channel; also a sampler or sites (see
    `forestgaps_jax.data.as_batch`).

    Args:
        model: called as ``model(dsm, threshold, rngs=None, train=False) -> logits``; `train` writes the
            trained weights into it.
        config: the settings.
        train_loader: training data.
        val_loader: read after every epoch; None to train without.
        test_loader: what `test` reads.
        callbacks: hooks, beside the default ones.
        optimizer: an optax transformation, or what makes one from a schedule (such as ``optax.lion``),
            instead of the configured one.
        scheduler: learning rate by optimizer step, instead of the configured one.
        loss_fn: a loss instead of the configured one.
        default_callbacks: False leaves the default hooks out.

    Attributes:
        state: the `TrainState`.
        history: as `train` returns it, over all calls.
        folder: the run folder; None before the first `train`, or where ``config.name`` is empty.
    """

    def __init__(
        self,
        model: nnx.Module,
        config: Config,
        train_loader: Any,
        val_loader: Any = None,
        test_loader: Any = None,
        callbacks: Sequence[Callback] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: optax.Schedule | None = None,
        loss_fn: Loss | None = None,
        *,
        default_callbacks: bool = True,
    ):
        config.validate()
        self.model, self.config = model, config
        self.data = Data(train_loader, val_loader, test_loader)
        self.callbacks, self.default_callbacks = list(callbacks or ()), default_callbacks
        self.optimizer, self.scheduler, self.loss_fn = optimizer, scheduler, loss_fn
        self.state = create_state(model, config, loss_fn=loss_fn, optimizer=optimizer)
        self.history: dict[str, list[Any]] = {name: [] for name in HISTORY}
        self.folder: Path | None = None
        self._position: Position | None = None

    def train(self) -> dict[str, list[Any]]:
        """Train up to ``config.epochs``, going on where the last call ended; returns the whole history.

        Called again it trains the epochs that are left: none, unless ``config.epochs`` was raised, or a
        callback or a signal had stopped it; early stopping stops at once again where its patience is used up.
        """
        if self.folder is None and self.config.name:
            self.folder = new_run_folder(self.config)
        try:
            self.state, self.history = train(
                self.state,
                self.config,
                self.data,
                self.callbacks,
                folder=self.folder,
                history=self.history,
                position=self._position,
                default_callbacks=self.default_callbacks,
                loss_fn=self.loss_fn,
                optimizer=self.optimizer,
                scheduler=self.scheduler,
            )
            self._position = None
        except (TrainingInterrupted, TrainingTerminated) as stop:
            self.state, self.history, self._position = stop.state, stop.history, stop.position
            raise
        finally:
            self._update_model()
        return self.history

    def test(self, loader: Any = None) -> dict[str, Any]:
        """Metrics on the test data, or on another loader, as `evaluate` gives them.

        Raises:
            ValueError: there are no test data.
        """
        loader = self.data.test if loader is None else loader
        if loader is None:
            raise ValueError("there is no test_loader: give one to the Trainer or to test()")
        return evaluate(
            self.state,
            self.config,
            loader,
            self.callbacks,
            loss_fn=self.loss_fn,
            folder=self.folder,
            history=self.history,
        )

    def predict(
        self, inputs: Any, thresholds: Any = 10.0, resolution: Any = None
    ) -> Float[Array, "batch height width 1"]:
        """Gap probabilities of surface tiles.

        Args:
            inputs: ``[batch, height, width, 1]`` or ``[batch, height, width]``, metres; NaN where not known.
            thresholds: canopy height, metres: one for all, or one a sample.
            resolution: side of a pixel, metres, likewise; None: 1 m, for a network that asks for it.
        """
        return predict(self.state, inputs, thresholds, resolution)

    def save_checkpoint(self, path: str | Path) -> Path:
        """Write state, history and settings as one checkpoint, and return its path."""
        info = {"config": self.config.to_dict(), "history": self.history}
        checkpoint.save_one(path, self.state, to_json(info))
        return Path(path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Take over the state and the history of a checkpoint.

        Args:
            path: what `save_checkpoint` returned; or a run folder, whose newest checkpoint is read, and in
                which the training then goes on. After another checkpoint it goes on in a new run folder.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: it is of another model or optimizer.
        """
        checkpoints = Path(path) / "checkpoints"
        if checkpoints.is_dir():
            saved = checkpoint.restore(checkpoints, self.state, settings=self.config.to_dict())
            checkpoint.set_aside(checkpoints, saved.damaged)
            self.folder = Path(path)
        else:
            saved = checkpoint.restore_one(path, self.state)
            self.folder = None
        self.state, self._position = saved.state, None
        self.history = {name: [] for name in HISTORY} | from_json(saved.info.get("history", {}))
        self._update_model()

    def resume_training(self, path: str | Path) -> dict[str, list[Any]]:
        """`load_checkpoint`, then `train`: no epoch is repeated and none is left out."""
        self.load_checkpoint(path)
        return self.train()

    def _update_model(self) -> None:
        for kind, values in (
            (nnx.Param, self.state.scored_params),
            (nnx.Not(nnx.Param), self.state.model_state),
        ):
            variables = nnx.state(self.model, kind)
            nnx.replace_by_pure_dict(variables, values)
            nnx.update(self.model, variables)


def train_model(
    model: nnx.Module,
    config: Config,
    train_loader: Any,
    val_loader: Any = None,
    test_loader: Any = None,
    callbacks: Sequence[Callback] | None = None,
    optimizer: Optimizer | None = None,
    scheduler: optax.Schedule | None = None,
    loss_fn: Loss | None = None,
    *,
    default_callbacks: bool = True,
) -> tuple[nnx.Module, dict[str, list[Any]]]:
    """Train a model in one call; the arguments are those of `Trainer`.

    Returns:
        The model, trained and ready to call, and the history; with a ``test_loader`` that has
        ``"test_metrics"`` too.
    """
    trainer = Trainer(
        model,
        config,
        train_loader,
        val_loader,
        test_loader,
        callbacks,
        optimizer,
        scheduler,
        loss_fn,
        default_callbacks=default_callbacks,
    )
    history: dict[str, Any] = trainer.train()
    if test_loader is not None:
        history["test_metrics"] = trainer.test()
    return trainer.model, history
