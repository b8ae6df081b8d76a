"""The rival in PyTorch computes what we compute, and both can be compared."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from forestgaps_jax import Batch, Config, TrainState, create_state
from forestgaps_jax.loss import create_loss_function
from forestgaps_jax.models import create_model, parameter_count
from forestgaps_jax.optimization import create_optimizer
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import gradients, make_train_step, predict_step
from forestgaps_jax.totals import Totals

pytest.importorskip("torch")

import torch

from benchmarks import peer as peer_script
from benchmarks import peer_report, torch_peer

PEER = Path(__file__).parents[2] / "benchmarks" / "peer.py"
SIZE = {"features": 4, "depth": 2}
CONFIG = Config(batch_size=4, tile_size=48, features=SIZE["features"], depth=SIZE["depth"])
STEPS = 100
CPU = torch.device("cpu")


def heights(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Surface on a hillside, and canopy, of four tiles."""
    random = np.random.default_rng(seed)
    chm = random.gamma(2.0, 5.0, (4, 48, 48, 1)).astype(np.float32)
    slope = np.linspace(0.0, 20.0, 48, dtype=np.float32)[:, None]
    return 300.0 + slope + chm, chm


@pytest.fixture(scope="module")
def batch() -> Batch:
    dsm, chm = heights(0)
    threshold = np.array([5.0, 20.0, 7.0, 5.0], np.float32)
    mask = (chm < threshold[:, None, None, None]).astype(np.float32)
    return Batch(*map(jnp.asarray, (dsm, mask, threshold, np.ones(dsm.shape, bool))))


@pytest.fixture(scope="module")
def tiles(batch: Batch) -> torch_peer.Tiles:
    dsm, mask = (torch.tensor(np.asarray(x)).permute(0, 3, 1, 2) for x in (batch.dsm, batch.mask))
    return torch_peer.Tiles(dsm, mask, torch.tensor(np.asarray(batch.threshold)))


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    """No weight or statistic is where it would hide a mistake, such as the zeros that FiLM starts from."""
    model, random = create_model("unet_film", rngs=nnx.Rngs(0), **SIZE), np.random.default_rng(1)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.05 * normal(random, leaf), nnx.state(model)))
    return model


def normal(random: np.random.Generator, leaf: jax.Array) -> np.ndarray:
    return random.normal(size=leaf.shape).astype(np.float32)


@pytest.fixture
def state(model: nnx.Module) -> TrainState:
    return create_state(model, CONFIG)


@pytest.fixture
def peer(model: nnx.Module) -> torch_peer.FiLMUNet:
    peer = torch_peer.FiLMUNet(**SIZE)
    torch_peer.copy_weights(model, peer)
    return peer


def image(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [SIZE, {"features": 3, "depth": 0}, {"features": 4, "depth": 3}])
def test_has_as_many_parameters(size: dict):
    count = sum(p.numel() for p in torch_peer.FiLMUNet(**size).parameters())
    assert count == parameter_count(create_model("unet_film", rngs=nnx.Rngs(0), **size))


def test_sees_the_defaults_of_the_library():
    assert Config().opening_windows == torch_peer.OPENING_WINDOWS
    assert Config().height_scale == torch_peer.HEIGHT_SCALE


@pytest.fixture(scope="module")
def apply(model: nnx.Module) -> Callable[..., Any]:
    """Our forward pass, compiled: ``apply(batch, train) -> (logits, model_state)``."""
    state = create_state(model, CONFIG)

    @partial(jax.jit, static_argnums=1)
    def apply(batch: Batch, train: bool) -> Any:
        return state.apply(state.params, state.model_state, batch.dsm, batch.threshold, train=train)

    return apply


def test_gives_the_same_logits(apply, peer, batch: Batch, tiles: torch_peer.Tiles):
    logits, _ = apply(batch, False)
    np.testing.assert_allclose(image(peer.eval()(tiles.dsm, tiles.threshold)), logits, atol=1e-4)


def test_gives_the_same_logits_and_statistics_in_training(apply, peer, batch: Batch, tiles: torch_peer.Tiles):
    before = {name: values.clone() for name, values in peer.state_dict().items()}
    logits, moved = apply(batch, True)
    np.testing.assert_allclose(image(peer.train()(tiles.dsm, tiles.threshold)), logits, atol=1e-4)
    after = peer.state_dict()
    for name, ours in torch_peer.as_state_dict(moved).items():
        # PyTorch's variances are unbiased; the lowest level has 4 x 12 x 12 pixels.
        tolerance = 1e-5 if name.endswith("mean") else 1.0 / (4 * 12 * 12)
        np.testing.assert_allclose(after[name], ours, rtol=tolerance, atol=1e-5, err_msg=name)
        assert not np.allclose(ours, before[name]), name


@pytest.mark.parametrize("name", ["eager", "channels_last"])
def test_has_the_same_loss_gradients_and_counts(name, state, peer, batch: Batch, tiles: torch_peer.Tiles):
    recipe = make_recipe(CONFIG, STEPS)
    (loss, (logits, _)), grads = jax.jit(lambda state: gradients(recipe, state, batch))(state)
    variant = torch_peer.VARIANTS[name]
    trainer = torch_peer.Trainer(peer, variant, CONFIG.thresholds, CPU)
    found, _, cells, group = trainer.forward(*tiles)
    found.backward()
    assert found.item() == pytest.approx(float(loss), rel=1e-5)
    for parameter, ours in torch_peer.as_state_dict(grads).items():
        theirs = peer.get_parameter(parameter).grad
        assert theirs is not None
        assert (theirs - ours).norm() <= 1e-3 * ours.norm() + 1e-7, parameter
    assert group.tolist() == [0, 3, 4, 0]
    truth = np.asarray(batch.mask) > 0.5
    both = (np.asarray(logits > 0) & truth).sum((1, 2, 3))
    assert cells[:, 0].tolist() == both.tolist()


def test_moves_the_weights_alike(state, peer, batch: Batch, tiles: torch_peer.Tiles):
    totals = Totals.zeros(CONFIG.thresholds, training=True)
    trainer = torch_peer.Trainer(
        peer, torch_peer.VARIANTS["channels_last"], CONFIG.thresholds, CPU, steps=CONFIG.epochs * STEPS
    )
    before = {name: p.detach().clone() for name, p in peer.named_parameters()}
    step = make_train_step(make_recipe(CONFIG, STEPS))
    state, totals, logs = step(state, totals, batch)
    trainer.step(tiles)

    assert trainer.counts.tolist() == totals.counts.to_numpy().tolist()
    ours, lr = torch_peer.as_state_dict(state.params), CONFIG.learning_rate
    apart = torch.cat([((ours[name] - p.detach()) / lr).abs().ravel() for name, p in peer.named_parameters()])
    moved = torch.cat(
        [((p.detach() - before[name]) / lr).abs().ravel() for name, p in peer.named_parameters()]
    )
    assert moved.median() > 0.99
    # Adam's first step has the sign of the gradient, which rounding decides where it is nearly 0.
    assert apart.quantile(0.995) < 0.02
    assert logs.lr == pytest.approx(lr)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(float(step(state, totals, batch)[2].lr))


def test_decays_and_averages_alike(model, peer):
    """The same gradients, large and small, make the same weights in both optimizers, step after step."""
    config = Config(weight_decay=0.1)
    optimizer = create_optimizer(config, lambda step: config.learning_rate)
    params = create_state(model, config).params
    carried, random = optimizer.init(params), np.random.default_rng(2)

    @jax.jit
    def update(grads: Any, carried: Any, params: Any) -> tuple[Any, Any]:
        updates, carried = optimizer.update(grads, carried, params)
        return optax.apply_updates(params, updates), carried

    theirs = torch_peer.make_optimizer(peer, config.learning_rate, config.weight_decay, fused=True)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: normal(random, leaf) ** 3, params)
        params, carried = update(grads, carried, params)
        for name, grad in torch_peer.as_state_dict(grads).items():
            peer.get_parameter(name).grad = grad
        theirs.step()
    for name, ours in torch_peer.as_state_dict(params).items():
        np.testing.assert_allclose(peer.get_parameter(name).detach(), ours, atol=2e-6, err_msg=name)


def test_loss_is_that_of_the_settings():
    random = np.random.default_rng(0)
    logits = random.normal(0.0, 5.0, (2, 8, 8, 1)).astype(np.float32)
    mask = (random.random(logits.shape) < 0.3).astype(np.float32)
    ours = create_loss_function(Config())(jnp.asarray(logits), jnp.asarray(mask), valid=None)
    theirs = torch_peer.focal_dice_loss(torch.tensor(logits), torch.tensor(mask))
    assert theirs.item() == pytest.approx(float(ours), rel=1e-5)


def test_predicts_the_same(state, peer, batch: Batch, tiles: torch_peer.Tiles):
    ours = predict_step(state, batch.dsm, batch.threshold)
    predictor = torch_peer.Predictor(peer, torch_peer.VARIANTS["channels_last"], CPU)
    np.testing.assert_allclose(image(predictor.predict(tiles.dsm, tiles.threshold)), ours, atol=1e-4)


def test_bfloat16_keeps_heights_and_logits(peer, tiles: torch_peer.Tiles):
    plain = peer.eval()(tiles.dsm, tiles.threshold)
    with torch_peer.VARIANTS["channels_last-bf16"].autocast(CPU):
        rounded = peer(tiles.dsm, tiles.threshold)
    assert rounded.dtype == torch.float32
    assert 0.0 < (rounded - plain).abs().mean() < 0.05 * plain.abs().mean()


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 1, 1)])
def test_doubles_alike_when_compiled(shape: tuple[int, ...]):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch_peer.mix_neighbours(x), torch_peer.double(x))


def test_habits_count_what_counts(tiles: torch_peer.Tiles):
    logits = tiles.mask * 2.0 - 1.0
    for metrics in torch_peer.habitual_metrics(logits, tiles.mask):
        assert metrics == {
            name: pytest.approx(1.0) for name in ("iou", "precision", "recall", "f1", "accuracy")
        }


def test_cuts_tiles_whose_labels_are_true():
    dsm, chm = (array[0, :, :, 0] for array in heights(3))
    dataset = torch_peer.RandomTiles([(dsm, chm)], 16, (5.0, 10.0))
    surface, mask, threshold = dataset[7]
    assert torch.equal(surface, dataset[7][0])
    assert surface.shape == mask.shape == (1, 16, 16)
    known = dict(zip(dsm.ravel().tolist(), chm.ravel().tolist(), strict=True))
    assert mask.ravel().tolist() == [known[z] < threshold.item() for z in surface.ravel().tolist()]
    assert {dataset[index][2].item() for index in range(20)} == {5.0, 10.0}


def test_both_take_turns(tmp_path: Path):
    sizes = ["--batch", "2", "--tile", "32", "--features", "2", "--depth", "1", "--what", "end-to-end"]
    turns = ["--rounds", "1", "--steps", "1", "--contestants", "ours", "eager"]
    file = tmp_path / "peer.json"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}  # type: ignore[attr-defined]
    subprocess.run(
        [sys.executable, str(PEER), *sizes, *turns, "--json", str(file)],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | cache,
    )
    record = json.loads(file.read_text())
    ours, eager = (record["contestants"][name] for name in ("ours", "eager"))
    assert ours["parameters"] == eager["parameters"]
    assert record["ratios"]["ours"]["fastest"] == "eager"
    assert record["ratios"]["ours"]["median"] == pytest.approx(ours["median"] / eager["median"])
    assert all(len(found["seconds"]) == len(found["other_cores"]) == 1 for found in (ours, eager))
    assert all(found["peak_mb"] > 50 for found in (ours, eager))


def run_record(ours: list[float], eager: list[float]) -> dict[str, Any]:
    seconds = {"ours": ours, "eager": eager}
    contestants = {name: {"median": float(np.median(times))} for name, times in seconds.items()}
    return {"machine": {"cpu": "x"}, "contestants": contestants, "ratios": peer_report.ratios(seconds)}


def test_drift_of_the_machine_cancels():
    stored = run_record([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    now = run_record([1.6, 1.6, 1.6], [4.0, 4.0, 4.0])  # everything takes twice as long, ours less
    found = peer_report.against(now, stored)["ours"]
    assert found["median"] == found["by_rival"]["eager"] == pytest.approx(0.8)
    assert found["not_normalised"] == pytest.approx(1.6)


def test_precisions_are_compared_apart():
    seconds = {"ours": [1.0], "ours-bf16": [0.5], "eager": [2.0], "compile": [0.8], "compile-bf16": [0.25]}
    found = peer_report.ratios(seconds)
    assert found["ours"]["fastest"] == "compile"
    assert set(found["ours"]["over"]) == {"eager", "compile"}
    assert found["ours-bf16"]["median"] == pytest.approx(2.0)


def test_a_stored_run_of_another_task_is_refused():
    task = {"what": "train", "batch": 4, "tile": 128, "features": 32, "depth": 4}
    peer_script.check_comparable(task, dict(task))
    with pytest.raises(SystemExit, match="--batch 8"):
        peer_script.check_comparable(task, task | {"batch": 8})
