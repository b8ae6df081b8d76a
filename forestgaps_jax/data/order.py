"""The place of each sample in a shuffled epoch, without the shuffle being made."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

_ROUNDS = 40


def shuffled(
    slots: Int[Array, " batch"] | UInt32[Array, " batch"], count: int, key: PRNGKeyArray
) -> Int[Array, " batch"]:
    """What stands at some places of a random permutation of ``count`` numbers.

    Takes time by the places asked for, not by ``count``: `jax.random.permutation` sorts all of them, which in
    a training step of a small network is most of the time.

    Args:
        slots: places, from 0 to below ``count``.
        count: how many numbers there are, below 2^31.
        key: of the permutation.

    Source: the swap-or-not shuffle, Hoang, Morris and Rogaway 2012, An Enciphering Scheme Based on a Card
    Shuffle, arXiv:1208.1176.

    >>> sorted(shuffled(jnp.arange(5), 5, jax.random.key(0)).tolist())
    [0, 1, 2, 3, 4]
    """
    pivot_key, coin_key = jax.random.split(key)
    pivots = jax.random.randint(pivot_key, (_ROUNDS,), 0, count).astype(jnp.uint32)
    coins = jax.random.bits(coin_key, (_ROUNDS,), jnp.uint32)

    def round_of(card: Array, drawn: tuple[Array, Array]) -> tuple[Array, None]:
        pivot, coin = drawn
        # A card is paired with its mirror image about half the pivot; one coin for both, or they would meet.
        mirrored = jnp.where(card > pivot, pivot + jnp.uint32(count) - card, pivot - card)
        heads = _mixed(jnp.maximum(card, mirrored) ^ coin) & 1
        return jnp.where(heads == 1, mirrored, card), None

    card, _ = jax.lax.scan(round_of, slots.astype(jnp.uint32), (pivots, coins), unroll=4)
    return card.astype(jnp.int32)


def _mixed(bits: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
    """Every bit of the result depends on all of the bits: MurmurHash3's finalizer."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
