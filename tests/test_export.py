"""The steps as TPUs and GPUs get them, lowered on a machine that has none."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import create_state
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.loss import split_weights
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import numbered_eval_step, numbered_train_step, predict_step, scoring_numbers
from forestgaps_jax.totals import Totals
from tests.conftest import TINY, flags_of_devices
from tests.hlo import channels_first, convolutions, doubles, gathers, host_calls

CONFIG = replace(
    TINY, model_name="unet_ground", thresholds_per_tile=2, precision="bfloat16", augment_resolution=0.5,
    augment_relief=5.0, augment_noise=0.1, augment_smoothing=2.0, use_droppath=True, dropout=0.1,
)  # fmt: skip
PIXELS = CONFIG.tile_size**2
"""Of a tile."""


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), tree)


@lru_cache
def traced(step: str, source: str):
    """A step, traced with a sampler or a batch of its shapes."""
    data = create_data([virtual_forest(1, (64, 80), slope=20.0)], CONFIG)
    state = abstract(create_state(create_model_from_config(CONFIG), CONFIG))
    recipe = make_recipe(CONFIG, data.train.steps_per_epoch)
    sampler = data.train if step == "train" else data.val
    given = sampler if source == "sampler" else jax.eval_shape(sampler.sample, jnp.int32(0))
    given = abstract(given)
    if step == "predict":
        return predict_step.trace(state, given.dsm, given.threshold, given.resolution)
    if step == "eval":
        totals = abstract(Totals.zeros(CONFIG.thresholds, histogram=True))
        numbers = scoring_numbers(recipe.score_loss, jnp.asarray(CONFIG.thresholds))
        function = numbered_eval_step(split_weights(recipe.score_loss)[0])
        return jax.jit(partial(function, numbers)).trace(state, totals, given, jnp.int32(0))
    totals = abstract(Totals.zeros(CONFIG.thresholds, training=True))
    return jax.jit(partial(numbered_train_step(recipe.plan), recipe.numbers)).trace(state, totals, given)


STEPS = [(step, source) for step in ("train", "eval") for source in ("sampler", "batch")]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("step", "source"), [*STEPS, ("predict", "batch")])
def test_a_step_has_nothing_that_hurts_there(step, source, platform):
    text = traced(step, source).lower(lowering_platforms=(platform,)).as_text()
    assert not doubles(text)
    assert not host_calls(text)

    found = convolutions(text)
    assert not channels_first(found)
    full = [conv for conv in found if conv.types != {"bf16"}]
    # Heights go in and answers come out in float32: two convolutions, and the three of their gradients.
    assert len(full) == (5 if step == "train" else 2) < len(found)
    assert all(conv.exact for conv in full)

    large = [gather for gather in gathers(text) if gather.result >= PIXELS]
    assert all(gather.slice >= CONFIG.tile_size for gather in large), "rows, not pixels"
    assert max((gather.result for gather in large), default=0) <= 2 * CONFIG.batch_size * PIXELS
    assert bool(large) == (source == "sampler")


def lowered(function, *shapes):
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()


IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)


def convolve(order, image, kernel):
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=(order, "HWIO", order)
    )


def test_float64_is_found():
    with jax.enable_x64(True):
        assert doubles(lowered(lambda x: x.astype(jnp.float64).sum(), IMAGE))
        assert doubles(lowered(lambda: jnp.float64(1.0)))
    assert not doubles(lowered(lambda x: x.sum(), IMAGE))


def test_calls_to_the_host_are_found():
    def callback(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def printing(x):
        jax.debug.print("{}", x.sum())
        return x

    for function in (callback, printing):
        assert host_calls(jax.jit(function).lower(IMAGE).as_text())
    assert host_calls('"stablehlo.send"(%0, %1) : (tensor<f32>, !stablehlo.token) -> !stablehlo.token')


def test_channels_before_rows_are_found():
    image = jax.ShapeDtypeStruct((2, 3, 8, 8), jnp.float32)
    assert channels_first(convolutions(lowered(partial(convolve, "NCHW"), image, KERNEL)))
    gradient = jax.grad(lambda *x: convolve("NHWC", *x).sum(), (0, 1))
    found = convolutions(lowered(gradient, IMAGE, KERNEL))
    assert len(found) == 2
    assert not channels_first(found)


def test_a_float32_convolution_is_found_and_is_not_exact():
    (conv,) = convolutions(lowered(partial(convolve, "NHWC"), IMAGE, KERNEL))
    assert conv.types == {"f32"}
    assert not conv.exact
    with jax.default_matmul_precision("highest"):
        assert convolutions(lowered(partial(convolve, "NHWC"), IMAGE, KERNEL))[0].exact


def test_a_gather_of_pixels_or_of_all_is_told():
    places = jax.ShapeDtypeStruct((50,), jnp.int32)
    (pixels,) = gathers(lowered(lambda x, i: x[i, i, i, i], IMAGE, places))
    assert pixels == (1, 50)
    (images,) = gathers(lowered(lambda x, i: x[i], IMAGE, places))
    assert images == (8 * 8 * 3, 50 * 8 * 8 * 3)


@pytest.fixture(scope="module")
def divided() -> dict[str, list]:
    """What eight devices tell each other in a step, from a process that has as many."""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "XLA_FLAGS": flags_of_devices(8)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.divided"],
        cwd=root, env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["batch", "sampler", "heights", "unet_film"])
def test_devices_tell_each_other_sums_alone(divided, case):
    largest, tiles = divided[case]["largest"], divided[case]["tiles"]
    assert set(largest) == {"all-reduce"}
    assert largest["all-reduce"] <= 64 * 192, "the projection of FiLM is the largest parameter"
    assert tiles == 1, "each device convolves its own share of the batch"


def test_devices_that_hold_rasters_together_give_each_other_tiles_alone(divided):
    largest, size = divided["together"]["largest"], TINY.tile_size
    assert set(largest) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert largest["reduce-scatter"] == size * size * 2, "DSM and CHM of one tile"
    assert largest["all-gather"] <= 8 * size, "where the rows of eight tiles begin"
    assert divided["together"]["tiles"] == 1


def test_images_that_are_gathered_are_found(divided):
    assert "all-gather" in divided["gathering"]["largest"]
