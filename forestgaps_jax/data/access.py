"""The rasters of a run, held in memory or streamed from disk, behind the same few functions."""

from collections.abc import Sequence
from dataclasses import replace

from forestgaps_jax.config import Config
from forestgaps_jax.data.memory import choose
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.sources import create_data, evaluation_sampler, load_sites
from forestgaps_jax.data.stream import create_stream, open_pairs, stream
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.data.windows import Pair
from forestgaps_jax.types import Data, Site

Grounds = Sequence[Site] | Sequence[Pair]
"""Rasters in memory, or on disk."""

Tiles = TileSampler | TileStream
"""Tiles of these: both know their ``places``, and ``read`` some of them."""


def open_sites(config: Config) -> tuple[Config, Grounds]:
    """The rasters of settings, read or only opened; tells which, and why.

    Args:
        config: with ``sites`` written out; see `with_pairs`.

    Returns:
        The settings with ``stream = "always"`` where that was chosen, so that whoever goes on with them, on
        a machine of any size, reads the same tiles; and the rasters. Errors are those of `choose`,
        `load_sites` and `stream`.
    """
    choice = choose(config)
    if config.dsm or config.chm_only:
        print(choice.reason)
    if not choice.streams:
        return config, load_sites(config)
    return replace(config, stream="always"), open_pairs(config)


def reopen(config: Config) -> Grounds:
    """The rasters of a run, as it had them, by the settings in its folder."""
    return open_pairs(config) if is_streamed(config) else load_sites(config)


def is_streamed(config: Config) -> bool:
    """Whether a run with these settings, as `open_sites` gave them, streams its rasters."""
    return config.stream == "always"


def split(sites: Grounds, config: Config) -> Data:
    """Training, validation and test, as `create_data` or `create_stream` deal them."""
    return create_stream(sites, config) if is_streamed(config) else create_data(_in_memory(sites), config)


def all_of(sites: Grounds, config: Config) -> Tiles:
    """All tiles of the rasters, to score."""
    if is_streamed(config):
        return stream(sites, config, shuffle=False)
    return evaluation_sampler(_in_memory(sites), config)


def _in_memory(sites: Grounds) -> list[Site]:
    return [site for site in sites if isinstance(site, Site)]
