"""From the configuration to sites, and from sites to the samplers of a run."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.config import Config
from forestgaps_jax.data.rasters import read_site
from forestgaps_jax.data.sampler import Rasters, TileSampler
from forestgaps_jax.data.synthetic import virtual_forest
from forestgaps_jax.data.tiles import Places, all_tiles, split_blocks
from forestgaps_jax.types import Data, Site


def load_sites(config: Config) -> list[Site]:
    """Read the raster pairs that ``config`` names, or make its virtual forests."""
    if config.dsm:
        return [read_site(dsm, chm) for dsm, chm in zip(config.dsm, config.chm, strict=True)]
    slopes = np.linspace(*config.virtual_slope, config.virtual_sites)
    return [
        virtual_forest(
            seed=1000 * config.seed + i,
            shape=(config.virtual_size, config.virtual_size),
            resolution=config.virtual_resolution,
            slope=float(slope),
        )
        for i, slope in enumerate(slopes)
    ]


def create_data(sites: Sequence[Site], config: Config) -> Data:
    """Split sites by blocks of ground into samplers for training, validation and test.

    Args:
        sites: rasters, as `load_sites`, `read_site` or `virtual_forest` give them.
        config: tiles, split, thresholds, batch size and seed.

    Raises:
        ValueError: the sites are too small to be split.
    """
    split, rasters = split_blocks(sites, config), Rasters.from_sites(sites)
    return Data(
        train=_sampler(rasters, split.train, config, shuffle=True),
        val=_sampler(rasters, split.val, config) if len(split.val) else None,
        test=_sampler(rasters, split.test, config) if len(split.test) else None,
    )


def training_sampler(sites: Sequence[Site], config: Config) -> TileSampler:
    """A sampler over the whole of the sites, for training."""
    places = all_tiles(sites, config, training=True)
    return _sampler(Rasters.from_sites(sites), places, config, shuffle=True)


def evaluation_sampler(sites: Sequence[Site], config: Config) -> TileSampler:
    """A sampler over the whole of the sites: tiles side by side, in order, at every threshold."""
    return _sampler(Rasters.from_sites(sites), all_tiles(sites, config), config)


def _sampler(rasters: Rasters, places: Places, config: Config, shuffle: bool = False) -> TileSampler:
    return TileSampler(
        rasters=rasters,
        places=jnp.asarray(places),
        # Far from 0, where fold_in and split give equal keys: no draw here is one of the network's.
        key=jax.random.fold_in(jax.random.key(config.seed), 2**31),
        tile_size=config.tile_size,
        batch_size=config.batch_size,
        thresholds=config.thresholds,
        threshold_range=config.threshold_range if shuffle else None,
        shuffle=shuffle,
        augment=config.augment and shuffle,
    )
