"""What one compiled function computes of a batch of windows: all thresholds, symmetries, random passes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from forestgaps_jax.compilation import jit
from forestgaps_jax.data.augment import turn
from forestgaps_jax.inference.windows import Windows
from forestgaps_jax.layers.norm import Modulation, Norm
from forestgaps_jax.state import NNXApply, TrainState

_SYMMETRIES = 8


@partial(jit, static_argnames=("flips", "samples"))
def predict_windows(
    state: TrainState,
    dsm: Float[Array, "batch size size 1"],
    thresholds: Float[Array, " thresholds"],
    resolution: Float[Array, " batch"] | None,
    key: PRNGKeyArray,
    *,
    flips: bool = False,
    samples: int = 0,
) -> tuple[Float[Array, "batch thresholds size size"], Float[Array, "batch thresholds size size"] | None]:
    """Gap probabilities of several thresholds, and how far random passes scatter.

    A gap below 5 m is a gap below 10 m: at each pixel the probabilities never fall with the threshold.

    Args:
        state: what predicts, with the moving average of its weights where it has one.
        dsm: surface height, metres; NaN where not known.
        thresholds: canopy heights, metres, rising.
        resolution: ground size of a pixel's side, metres; None if not known.
        key: of the random passes.
        flips: take the mean over the 8 symmetries of the square.
        samples: passes with stochastic depth and dropout at work; 0 for none.

    Returns:
        Probabilities of the whole network, and the standard deviation over the random passes, or None.
    """
    told = state.told(resolution)

    def whole(images: Array) -> Array:
        def logits(threshold: Array) -> Array:
            return state.apply(state.scored_params, state.model_state, images, threshold, **told)[0]

        return _over_thresholds(logits, images, thresholds)

    probability = _over_symmetries(whole, dsm) if flips else whole(dsm)
    if not samples:
        return probability, None

    def drawn(key: Array) -> Array:
        def logits(threshold: Array) -> Array:
            return random_pass(state, dsm, threshold, key, **told)

        return _over_thresholds(logits, dsm, thresholds)

    return probability, _scatter(drawn, key, samples)


def _over_thresholds(logits: Any, images: Array, thresholds: Array) -> Array:
    """A Python loop, so that XLA computes but once what does not depend on the threshold."""
    batch = images.shape[:1]
    of_each = [logits(jnp.broadcast_to(threshold, batch))[..., 0] for threshold in thresholds]
    return jax.lax.cummax(jax.nn.sigmoid(jnp.stack(of_each, axis=1).astype(jnp.float32)), axis=1)


def _over_symmetries(predict: Any, images: Array) -> Array:
    """Mean over all turns and mirrorings; one after the other, to compile the network but once."""

    def turned(symmetry: Array) -> Array:
        seen = predict(jax.vmap(turn, (0, None))(images, symmetry))
        swap, rows, columns = symmetry & 1, symmetry >> 1 & 1, symmetry >> 2 & 1
        # Undone from the last step to the first: a swap of rows and columns swaps their reversals too.
        back = jnp.where(swap == 1, swap | columns << 1 | rows << 2, symmetry)
        images_last = jnp.moveaxis(seen, 1, -1)
        return jnp.moveaxis(jax.vmap(turn, (0, None))(images_last, back), -1, 1)

    def add(total: Array, symmetry: Array) -> tuple[Array, None]:
        return total + turned(symmetry), None

    start = jnp.zeros(jax.eval_shape(predict, images).shape)
    return jax.lax.scan(add, start, jnp.arange(_SYMMETRIES))[0] / _SYMMETRIES


def _scatter(drawn: Any, key: Array, samples: int) -> Array:
    """Standard deviation over random passes (n - 1), by Welford's sums: memory does not grow with them."""

    def add(sums: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        mean, squares = sums
        value = drawn(jax.random.fold_in(key, number))
        moved = mean + (value - mean) / (number + 1)
        return (moved, squares + (value - mean) * (value - moved)), None

    start = jnp.zeros(jax.eval_shape(drawn, key).shape)
    (_, squares), _ = jax.lax.scan(add, (start, start), jnp.arange(samples))
    return jnp.sqrt(squares / (samples - 1))


class _RunningNorm(Norm):
    """Normalises by the running statistics, also in a pass that drops at random."""

    def __call__(
        self, x: Any, known: Any, modulation: Modulation | None = None, train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        return super().__call__(x, known, modulation, train=False)


def random_pass(
    state: TrainState,
    dsm: Float[Array, "batch height width 1"],
    threshold: Float[Array, " batch"],
    key: PRNGKeyArray,
    **told: Any,
) -> Float[Array, "batch height width 1"]:
    """Logits with stochastic depth and dropout at work, at the network's own rates.

    Normalisation is by the running statistics: those of the batch would depend on what else is in it.
    """
    apply = state.apply
    assert isinstance(apply, NNXApply)
    model: Any = nnx.merge(apply.graphdef, state.scored_params, state.model_state)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Norm):
            module.__class__ = _RunningNorm
    dropout, drop_path = jax.random.split(key)
    rngs = nnx.Rngs(dropout=dropout, drop_path=drop_path)
    return model(dsm, threshold, rngs=rngs, train=True, **told)


def check_windows(state: TrainState, windows: Windows) -> None:
    """Ask a network for its answer to a batch of windows, in shapes alone, before anything is computed.

    Raises:
        ValueError: a window that the network does not take, or random passes where nothing is random.
    """
    check_samples(state, windows.samples)
    size, batch = windows.tile_size, windows.batch_size
    dsm, heights = jnp.zeros((batch, size, size, 1)), jnp.ones(batch)
    try:
        jax.eval_shape(
            lambda: state.apply(state.params, state.model_state, dsm, heights, **state.told(heights))
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"tile_size = {size}: {error}") from None


def check_samples(state: TrainState, samples: int) -> None:
    """Refuse random passes of a network in which nothing is random.

    Raises:
        ValueError: ``samples`` is negative or 1, or the network has neither stochastic depth nor dropout.
    """
    if samples == 0:
        return
    if samples < 2:
        raise ValueError(f"samples = {samples}: must be 0, or 2 or more to have a standard deviation")
    if not isinstance(state.apply, NNXApply):
        raise ValueError("samples > 0 needs a Flax NNX network, whose random layers can be found: leave it 0")
    model = nnx.merge(state.apply.graphdef, state.params, state.model_state)
    rates = [m.rate for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Dropout)]
    if max([*rates, getattr(model, "drop_path_rate", 0.0)]) == 0:
        raise ValueError(
            f"samples = {samples}, but nothing in this network is random: train one with use_droppath = true "
            "or dropout > 0, or leave samples = 0"
        )
