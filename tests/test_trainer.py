"""The face of forestgaps: a Trainer over train, evaluate and predict."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from forestgaps_jax import Callback, Config, Trainer, create_model, create_state, train, train_model
from forestgaps_jax.callbacks import CheckpointingCallback, LoggingCallback
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.state import TrainState


def equal(a: TrainState, b: TrainState) -> bool:
    """Bit-identical trees."""
    leaves = [jax.tree.leaves((s.step, s.params, s.model_state, s.opt_state)) for s in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


class Tensor:
    """As much of a PyTorch CPU tensor as a loader's reader sees: it can become a NumPy array."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


@pytest.fixture
def model(config) -> nnx.Module:
    return create_model_from_config(config)


@pytest.fixture
def trainer(model, config, data) -> Trainer:
    return Trainer(model, config, data.train, data.val, data.test)


def test_it_trains_as_train_does(trainer, config, data):
    expected, history = train(create_state(create_model_from_config(config), config), config, data)
    result = trainer.train()
    assert equal(trainer.state, expected)
    assert result["val_loss"] == history["val_loss"]
    assert result is trainer.history


def test_fault_13_training_again_repeats_no_epoch_and_goes_on_to_the_new_end(trainer):
    trainer.train()
    steps = int(trainer.state.step)
    assert len(trainer.train()["lr"]) == 2
    assert int(trainer.state.step) == steps
    trainer.config.epochs = 3
    history = trainer.train()
    assert {len(entries) for entries in history.values()} == {3}
    assert int(trainer.state.step) == steps // 2 * 3


def test_the_model_given_is_the_one_trained(trainer, model, data):
    dsm = np.random.default_rng(0).uniform(300, 330, (1, 16, 16, 1)).astype(np.float32)
    before = model(jnp.asarray(dsm), jnp.array([5.0]))
    trainer.train()
    logits = trainer.model(jnp.asarray(dsm), jnp.array([5.0]))
    assert trainer.model is model
    assert not np.allclose(logits, before)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), trainer.predict(dsm, 5.0), rtol=1e-5)


def test_with_a_moving_average_the_model_is_the_one_that_is_scored(config, data):
    config = replace(config, ema_decay=0.9)
    trainer = Trainer(create_model_from_config(config), config, data.train)
    trainer.train()
    dsm = np.random.default_rng(0).normal(300, 5, (1, 16, 16, 1)).astype(np.float32)
    logits = trainer.model(jnp.asarray(dsm), jnp.array([5.0]))
    np.testing.assert_allclose(jax.nn.sigmoid(logits), trainer.predict(dsm, 5.0), rtol=1e-5)


def test_prediction_is_at_ten_metres_unless_told(trainer):
    dsm = np.random.default_rng(0).normal(300, 5, (2, 16, 16)).astype(np.float32)
    trainer.train()
    one = trainer.predict(dsm)
    np.testing.assert_array_equal(one, trainer.predict(dsm, 10.0))
    np.testing.assert_array_equal(one[1:], trainer.predict(dsm, [3.0, 10.0])[1:])
    assert not np.array_equal(one[:1], trainer.predict(dsm, [3.0, 10.0])[:1])
    assert one.shape == (2, 16, 16, 1)
    assert bool(((one >= 0) & (one <= 1)).all())


def test_prediction_is_told_the_size_of_a_pixel(config, data):
    class Sided(nnx.Module):
        """Its logit is the side of a pixel."""

        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, dsm, threshold, rngs=None, train=False, resolution=None):
            side = jnp.ones(len(dsm)) if resolution is None else resolution
            return self.scale[...] * side[:, None, None, None] + 0.0 * dsm

    trainer, dsm = Trainer(Sided(), config, data.train), np.zeros((2, 4, 4), np.float32)
    for resolution, sides in ((None, [1.0, 1.0]), (2.0, [2.0, 2.0]), ([0.5, 3.0], [0.5, 3.0])):
        found = trainer.predict(dsm, 5.0, resolution)[:, 0, 0, 0]
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.array(sides))), rtol=1e-6)


def test_the_test_is_that_of_evaluate(trainer, config, data):
    trainer.train()
    metrics = trainer.test()
    assert metrics["threshold_metrics"].keys() == set(config.thresholds)
    assert trainer.test(data.test)["loss"] == metrics["loss"]


def test_a_test_without_data_is_refused(model, config, data):
    with pytest.raises(ValueError, match="no test_loader"):
        Trainer(model, config, data.train).test()


@pytest.mark.parametrize("after", [0, 1])
def test_fault_13_a_resumed_training_ends_as_if_never_stopped(config, data, tmp_path, after):
    """Also one that was saved before its first epoch."""

    class Stop(Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch + 1 == after:
                self.run.stop("a test")

    whole = Trainer(create_model_from_config(config), config, data.train, data.val)
    whole.train()
    part = Trainer(create_model_from_config(config), config, data.train, data.val, callbacks=[Stop()])
    if after:
        part.train()
    path = part.save_checkpoint(tmp_path / "part")
    assert path == tmp_path / "part"
    other = replace(config, seed=99)
    rest = Trainer(create_model_from_config(other), config, data.train, data.val)
    history = rest.resume_training(path)
    assert equal(rest.state, whole.state)
    assert history["val_loss"] == whole.history["val_loss"]
    assert history["val_metrics"][0]["threshold_metrics"].keys() == set(config.thresholds)
    assert {len(entries) for entries in history.values()} == {config.epochs}


def test_history_comes_back_with_its_numbers_and_its_undefined_values(config, data, tmp_path):
    trainer = Trainer(create_model_from_config(config), config, data.train)
    trainer.train()
    path = trainer.save_checkpoint(str(tmp_path / "one"))
    other = Trainer(create_model_from_config(config), config, data.train)
    other.load_checkpoint(path)
    assert all(math.isnan(loss) for loss in other.history["val_loss"])
    assert other.history["train_metrics"][0]["threshold_metrics"].keys() == set(config.thresholds)
    assert other.history["train_loss"] == trainer.history["train_loss"]


def test_a_run_folder_can_be_resumed_from(config, data, tmp_path):
    config = replace(config, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    first = Trainer(create_model_from_config(config), config, data.train, data.val)
    first.train()
    second = Trainer(create_model_from_config(config), config, data.train, data.val)
    second.load_checkpoint(tmp_path / "run")
    assert equal(first.state, second.state)
    assert second.history["val_loss"] == first.history["val_loss"]


def test_training_on_stays_in_one_run_folder(config, data, tmp_path):
    config = replace(config, epochs=1, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    trainer = Trainer(create_model_from_config(config), config, data.train, data.val)
    trainer.train()
    trainer.config.epochs = 2
    trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_checkpoint_is_written_over_but_nothing_else_is(trainer, tmp_path):
    trainer.save_checkpoint(tmp_path / "one")
    trainer.save_checkpoint(tmp_path / "one")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no checkpoint"):
        trainer.save_checkpoint(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        trainer.load_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_of_another_model_is_refused(trainer, config, data, tmp_path):
    path = trainer.save_checkpoint(tmp_path / "one")
    other = Trainer(create_model("unet", rngs=nnx.Rngs(0), features=4, depth=1), config, data.train)
    with pytest.raises(ValueError, match="another model"):
        other.load_checkpoint(path)


@pytest.mark.parametrize("make", [np.asarray, Tensor, jnp.asarray], ids=["numpy", "tensor", "jax"])
@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_loaders_like_those_of_pytorch(model, config, make, form):
    rng = np.random.default_rng(0)
    dsm = rng.normal(300, 5, (3, 16, 16)).astype(np.float32)
    parts = {
        "dsm": make(dsm),
        "mask": make((dsm < 300).astype(np.float32)),
        "threshold": make([5.0, 5.0, 15.0]),
    }
    loader = [parts if form == "mapping" else tuple(parts.values())] * 2
    history = Trainer(model, config, loader, loader).train()
    assert np.isfinite(history["val_loss"]).all()
    assert history["val_metrics"][0]["confusion_matrix"]["total_pixels"] == 2 * dsm.size


def test_channels_first_is_refused_with_what_to_do(model, config):
    images = Tensor(np.zeros((2, 1, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"transpose\(0, 2, 3, 1\)"):
        Trainer(model, config, [(images, images, 5.0)]).train()


def test_real_tensors_of_pytorch(model, config):
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(
        torch.rand(5, 16, 16) * 30, (torch.rand(5, 16, 16) < 0.5).float(), torch.full((5,), 5.0)
    )
    history = Trainer(model, config, torch.utils.data.DataLoader(dataset, batch_size=2)).train()
    assert np.isfinite(history["train_loss"]).all()


def test_optimizer_scheduler_and_loss_may_be_given(model, config, data):
    from forestgaps_jax.loss import FocalLoss

    schedule = optax.linear_schedule(1e-2, 1e-3, 8)
    trainer = Trainer(
        model, config, data.train, optimizer=optax.lion, scheduler=schedule, loss_fn=FocalLoss()
    )
    history = trainer.train()
    last = [(epoch + 1) * data.train.steps_per_epoch - 1 for epoch in range(config.epochs)]
    np.testing.assert_allclose(history["lr"], [schedule(step) for step in last], rtol=1e-6)


def test_train_model_gives_the_trained_module_and_the_history(config, data):
    model, history = train_model(
        model=create_model_from_config(config), config=config, train_loader=data.train, val_loader=data.val,
        test_loader=data.test,
    )  # fmt: skip
    logits = model(jnp.zeros((1, 16, 16, 1)), jnp.array([5.0]))
    assert logits.shape == (1, 16, 16, 1)
    assert len(history["val_loss"]) == config.epochs
    assert history["test_metrics"]["iou"] >= 0


def test_settings_are_checked_at_once(model, data):
    with pytest.raises(ValueError, match="multiple of 16"):
        Trainer(model, Config(tile_size=24), data.train)


def test_after_an_early_stop_training_again_changes_nothing(config, data):
    config = replace(
        config, epochs=6, use_early_stopping=True, early_stopping_patience=1, early_stopping_min_delta=1e9,
        early_stopping_restore_best=True,
    )  # fmt: skip
    trainer = Trainer(create_model_from_config(config), config, data.train, data.val)
    epochs = len(trainer.train()["lr"])
    assert epochs < 6
    before = trainer.state
    assert len(trainer.train()["lr"]) == epochs
    assert equal(trainer.state, before)


def test_a_callback_of_a_default_kind_takes_its_place(config, data, tmp_path):
    config = replace(config, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    mine = [CheckpointingCallback(monitor="val_loss", max_to_keep=2), LoggingCallback()]
    Trainer(create_model_from_config(config), config, data.train, data.val, callbacks=mine).train()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == config.epochs
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_resuming_from_a_run_folder_goes_on_in_it_with_its_whole_history(config, data, tmp_path):
    config = replace(config, epochs=1, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    Trainer(create_model_from_config(config), config, data.train, data.val).train()
    config = replace(config, epochs=2)
    history = Trainer(create_model_from_config(config), config, data.train, data.val).resume_training(
        tmp_path / "run"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    written = json.loads((tmp_path / "run" / "history.json").read_text())
    assert written["val_loss"] == history["val_loss"]
    assert len(history["val_loss"]) == 2


def test_test_events_see_the_training_they_follow(config, data):
    seen = []

    class Look(Callback):
        def on_test_end(self, logs=None):
            seen.append(len(self.run.history["lr"]))

    look = Look()
    trainer = Trainer(
        create_model_from_config(config), config, data.train, test_loader=data.test, callbacks=[look]
    )
    trainer.train()
    of_training = look.run
    trainer.test()
    assert seen == [config.epochs]
    assert look.run is of_training
