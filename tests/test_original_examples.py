"""The uses that the original's README shows, with only imports and the array library changed."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax import Config, create_model


@pytest.fixture
def config() -> Config:
    config = Config(tile_size=16, features=4, depth=1, use_progress_bar=False)
    config.epochs = 2
    config.batch_size = 4
    config.learning_rate = 1e-3
    return config


@pytest.fixture
def model() -> nnx.Module:
    return create_model("unet_film", rngs=nnx.Rngs(0), features=4, depth=1)


@pytest.fixture
def loader() -> list[tuple]:
    rng = np.random.default_rng(0)
    dsm = rng.normal(300, 8, (2, 4, 16, 16, 1)).astype(np.float32)
    thresholds = np.tile(np.float32([5, 10, 15, 20]), (2, 1))
    return [(x, (x < 300).astype(np.float32), t) for x, t in zip(dsm, thresholds, strict=True)]


def test_basic_training(config, model, loader):
    from forestgaps_jax.trainer import train_model

    model, history = train_model(model=model, config=config, train_loader=loader, val_loader=loader)
    assert len(history["train_loss"]) == len(history["val_loss"]) == 2
    assert model(jnp.asarray(loader[0][0]), jnp.asarray(loader[0][2])).shape == (4, 16, 16, 1)


def test_trainer(config, model, loader, tmp_path):
    from forestgaps_jax.trainer import Trainer

    trainer = Trainer(model=model, config=config, train_loader=loader, val_loader=loader, test_loader=loader)
    history = trainer.train()
    test_metrics = trainer.test()
    predictions = trainer.predict(loader[0][0], thresholds=10.0)
    path = trainer.save_checkpoint(tmp_path / "checkpoint")
    trainer.load_checkpoint(path)
    config.epochs = 3
    history = trainer.resume_training(path)
    assert set(history) >= {"train_loss", "val_loss", "train_metrics", "val_metrics", "lr", "epoch_times"}
    assert len(history["lr"]) == 3
    assert {"iou", "f1", "precision", "recall", "threshold_metrics"} <= set(test_metrics)
    assert predictions.shape == (4, 16, 16, 1)


def test_metrics(loader):
    from forestgaps_jax.metrics.analyzer import MetricAnalyzer
    from forestgaps_jax.metrics.classification import ThresholdMetrics
    from forestgaps_jax.metrics.segmentation import SegmentationMetrics

    rng = np.random.default_rng(0)
    metrics, by_threshold = SegmentationMetrics(), ThresholdMetrics(thresholds=[5, 10, 15, 20])
    for _, targets, _ in loader:
        predictions = np.clip(0.8 * targets + 0.3 * rng.random(targets.shape), 0, 1).astype(np.float32)
        metrics.update(predictions, targets)
        for threshold in (5, 10, 15, 20):
            by_threshold.update(predictions, targets, 0.5, threshold_value=threshold)
    results = metrics.compute()
    matrix = metrics.compute_confusion_matrix()
    assert {"precision", "recall", "f1", "iou", "accuracy"} <= set(results)
    assert matrix["tp"] + matrix["fp"] + matrix["fn"] + matrix["tn"] == 2 * 4 * 256
    assert set(by_threshold.compute()) == {5.0, 10.0, 15.0, 20.0}
    best, value = MetricAnalyzer(by_threshold).find_best_threshold("f1")
    assert best in (5.0, 10.0, 15.0, 20.0)
    assert 0 < value <= 1
    assert {"best_thresholds", "avg_metrics", "trends"} <= set(MetricAnalyzer(by_threshold).get_summary())


def test_losses(config):
    import jax.numpy as jnp

    from forestgaps_jax.loss.combined import CombinedFocalDiceLoss
    from forestgaps_jax.loss.factory import create_loss_function, create_loss_with_threshold_weights

    logits, targets = jnp.linspace(-3.0, 3.0, 128).reshape(2, 8, 8, 1), jnp.ones((2, 8, 8, 1))
    loss = CombinedFocalDiceLoss(alpha=0.5, gamma=2.0)
    config.loss_type = "combined_focal_dice"
    assert float(loss(logits, targets)) == pytest.approx(float(create_loss_function(config)(logits, targets)))
    stats = {
        5.0: {"gap_ratio": 0.1},
        10.0: {"gap_ratio": 0.2},
        15.0: {"gap_ratio": 0.4},
        20.0: {"gap_ratio": 0.8},
    }
    weighted = create_loss_with_threshold_weights(config, stats)
    threshold = jnp.array([5.0, 20.0])
    rare, common = (
        float(weighted(logits, targets, threshold=jnp.full(2, t), valid=None)) for t in (5.0, 20.0)
    )
    assert rare > common
    assert np.isfinite(float(weighted(logits, targets, threshold=threshold)))


def test_callbacks(config, model, loader, tmp_path):
    from forestgaps_jax.callbacks.checkpointing import CheckpointingCallback
    from forestgaps_jax.callbacks.logging import LoggingCallback
    from forestgaps_jax.callbacks.visualization import VisualizationCallback
    from forestgaps_jax.trainer import Trainer

    config.name, config.runs_dir = "run", str(tmp_path)
    callbacks = [LoggingCallback(), VisualizationCallback(), CheckpointingCallback()]
    Trainer(model, config, loader, loader, callbacks=callbacks).train()
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoints", "figures"} <= written


def test_regularisation(config):
    from forestgaps_jax.optimization.regularization import CompositeRegularization, GradientClipping

    model = create_model("unet_all_features", rngs=nnx.Rngs(0), features=4, depth=1)
    regularization = CompositeRegularization(
        model=model, dropout_rate=0.1, weight_decay=1e-4, drop_path_rate=0.1, stochastic_depth=True
    )
    mask = regularization.decay_mask(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert mask["head"] == {"kernel": True, "bias": False}
    clipping = GradientClipping(clip_value=1.0, clip_norm=True, monitor=True)
    clipped = clipping({"w": np.full(4, 3.0, np.float32)})
    assert np.linalg.norm(clipped["w"]) == pytest.approx(1.0)


def test_scheduler(config):
    from forestgaps_jax.optimization.lr_schedulers import create_scheduler

    config.scheduler_type, config.warmup_epochs, config.epochs = "cosine_warm", 5, 20
    schedule = create_scheduler(config, 10)
    assert float(schedule(0)) == pytest.approx(config.warmup_start_lr, rel=1e-4)
    assert float(schedule(50)) == pytest.approx(config.learning_rate)
    assert float(schedule(200)) == pytest.approx(config.min_lr, rel=1e-4)


def test_advanced_configuration(loader):
    from forestgaps_jax.models import create_model_from_config
    from forestgaps_jax.trainer import Trainer

    config = Config(
        epochs=7,
        batch_size=4,
        tile_size=16,
        features=4,
        depth=1,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-4,
        scheduler_type="cosine_warm",
        warmup_epochs=5,
        use_gradient_clipping=True,
        clip_value=1.0,
        use_threshold_weights=True,
        threshold_weight_adjustment={5: 1.5},
        use_droppath=True,
        droppath_final_prob=0.2,
        use_progress_bar=False,
    )
    history = Trainer(create_model_from_config(config), config, loader, loader).train()
    assert np.isfinite(history["train_loss"]).all()
    assert int(np.argmax(history["lr"])) in (4, 5)


def test_custom_callback(config, model, loader):
    from forestgaps_jax.callbacks.base import Callback
    from forestgaps_jax.trainer import Trainer

    seen = []

    class MyCallback(Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, logs["val_metrics"]["iou"]))

    history = Trainer(model, config, loader, loader, callbacks=[MyCallback()]).train()
    assert seen == [(epoch, metrics["iou"]) for epoch, metrics in enumerate(history["val_metrics"])]
