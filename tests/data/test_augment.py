import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.data.augment import turn, turn_at_random

TILE = np.random.default_rng(0).normal(size=(5, 5, 2)).astype(np.float32)
SYMMETRIES = {np.rot90(side, k).tobytes() for side in (TILE, np.flip(TILE, 0)) for k in range(4)}


def test_turn_gives_each_of_the_eight_symmetries_once():
    turned = jax.vmap(turn, (None, 0))(jnp.asarray(TILE), jnp.arange(8))
    assert len(SYMMETRIES) == 8
    assert {np.asarray(tile).tobytes() for tile in turned} == SYMMETRIES
    np.testing.assert_array_equal(turned[0], TILE)


def test_random_turns_are_symmetries_drawn_evenly_for_each_tile_alone():
    many = jnp.broadcast_to(TILE, (4000, *TILE.shape))
    turned = [np.asarray(tile).tobytes() for tile in turn_at_random(many, jax.random.key(1))]
    counts = [turned.count(symmetry) for symmetry in SYMMETRIES]
    assert sum(counts) == 4000
    # 500 expected of each; six standard deviations.
    assert all(abs(count - 500) < 6 * np.sqrt(4000 * 7 / 64) for count in counts)


def test_another_key_turns_otherwise():
    many = jnp.broadcast_to(TILE, (32, *TILE.shape))
    first, again, other = (np.asarray(turn_at_random(many, jax.random.key(key))) for key in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
