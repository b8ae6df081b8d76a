"""From the configuration to sites, and from sites to the samplers of a run."""

import logging
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from forestgaps_jax.config import Config
from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.divided import DividedRasters
from forestgaps_jax.data.held import Rasters
from forestgaps_jax.data.memory import are_divided
from forestgaps_jax.data.pairs import with_pairs
from forestgaps_jax.data.rasters import read_chm, read_site
from forestgaps_jax.data.sampler import SiteDraw, TileSampler, sampling_key
from forestgaps_jax.data.synthetic import is_virtual, put_on_terrain, virtual_forest
from forestgaps_jax.data.tiles import Places, all_tiles, split_blocks
from forestgaps_jax.parallel import Devices
from forestgaps_jax.types import Data, Site


def load_sites(config: Config) -> list[Site]:
    """The sites of ``config``: raster pairs, CHM rasters on virtual terrain, virtual forests, in this order.

    Virtual forests are made where there is no raster, or a ``virtual_share`` of them is to train.

    Raises:
        OSError: a raster is missing, or what ``sites`` names.
        ValueError: files in ``sites`` that are no pairs; or a raster that cannot be read as heights, or is
            too small or too coarse for a terrain.
    """
    config = with_pairs(config)
    names = config.site_names or [""] * len(config.dsm)
    files = zip(config.dsm, config.chm, names, strict=True)
    sites = [read_site(dsm, chm, name=name) for dsm, chm, name in files]
    slopes = np.linspace(*config.virtual_slope, len(config.chm_only))
    for i, (path, slope) in enumerate(zip(config.chm_only, slopes, strict=True)):
        chm = read_chm(path)
        try:
            sites.append(put_on_terrain(chm, seed=1000 * config.seed + i, slope=float(slope)))
        except ValueError as error:
            raise ValueError(f"{path} cannot be put on virtual terrain: {error}") from None
    return sites + (_virtual_forests(config) if config.virtual_share or not sites else [])


def _virtual_forests(config: Config) -> list[Site]:
    """Forests whose slopes, closures, heights and pixels fill their ranges evenly, in unlike orders."""
    count, rng = config.virtual_sites, np.random.default_rng(config.seed)
    slopes = np.linspace(*config.virtual_slope, count)
    closures, heights = (
        rng.permutation(np.linspace(*ends, count)) for ends in (config.virtual_closure, config.virtual_height)
    )
    pixels = rng.permutation(np.geomspace(*config.virtual_resolution, count))
    return [
        virtual_forest(
            seed=1000 * config.seed + i,
            shape=(config.virtual_size, config.virtual_size),
            resolution=float(pixels[i]),
            slope=float(slopes[i]),
            closure=float(closures[i]),
            height=float(heights[i]),
        )
        for i in range(count)
    ]


def create_data(sites: Sequence[Site], config: Config) -> Data:
    """Split sites by blocks of ground into samplers for training, validation and test.

    Args:
        sites: rasters, as `load_sites`, `read_site` or `virtual_forest` give them.
        config: tiles, split, thresholds, batch size and seed.

    Raises:
        ValueError: the sites are too small to be split.
    """
    split, rasters = split_blocks(sites, config), _held(sites, config)
    return Data(
        train=_sampler(rasters, split.train, config, shuffle=True, draw=_draw(split.train, sites, config)),
        val=_sampler(rasters, split.val, config) if len(split.val) else None,
        test=_sampler(rasters, split.test, config) if len(split.test) else None,
    )


def training_sampler(sites: Sequence[Site], config: Config) -> TileSampler:
    """A sampler over the whole of the sites, for training."""
    places = all_tiles(sites, config, training=True)
    draw = _draw(places, sites, config)
    return _sampler(_held(sites, config), places, config, shuffle=True, draw=draw)


def _draw(places: Places, sites: Sequence[Site], config: Config) -> SiteDraw | None:
    """How sites are drawn by ``site_weights`` and ``virtual_share``; None: every tile once an epoch.

    Raises:
        ValueError: the weights are not one for each raster, or 0 wherever there is a tile; or no virtual
            forest has a tile.
    """
    virtual = np.array([config.virtual_share > 0 and is_virtual(site) for site in sites])
    if config.virtual_share and not virtual.any():
        logging.getLogger(__name__).warning(
            "virtual_share = %g, but none of the sites is a virtual forest: load_sites(config) makes them",
            config.virtual_share,
        )
    if not config.site_weights and (not virtual.any() or virtual.all()):
        return None
    tiles = np.bincount(places[:, 0], minlength=len(sites)).astype(float)
    shares = config.virtual_share * _normalized(np.where(virtual, tiles, 0.0))
    if virtual.any() and not shares.any():
        raise ValueError(
            f"virtual_share = {config.virtual_share:g}: no virtual forest has a training tile; make "
            f"virtual_size (now {config.virtual_size} px) larger, or set virtual_share to 0"
        )
    weights = np.where(virtual, 0.0, tiles)
    if config.site_weights:
        if len(config.site_weights) != np.sum(~virtual):
            raise ValueError(
                f"site_weights = {config.site_weights}: must be one for each raster, here {np.sum(~virtual)}"
            )
        # A site without a tile cannot be drawn.
        weights[~virtual] = np.where(tiles[~virtual] > 0, config.site_weights, 0.0)
    if not weights.any():
        raise ValueError(
            f"site_weights = {config.site_weights}: no raster that has training tiles has a weight; "
            f"training tiles by site: {tiles.astype(int).tolist()}"
        )
    return SiteDraw.of(places, (1.0 - shares.sum()) * _normalized(weights) + shares)


def _normalized(weights: Float[np.ndarray, " sites"]) -> Float[np.ndarray, " sites"]:
    total = weights.sum()
    return weights / total if total else weights


def evaluation_sampler(sites: Sequence[Site], config: Config) -> TileSampler:
    """A sampler over the whole of the sites: tiles side by side, in order, at every threshold."""
    return _sampler(_held(sites, config), all_tiles(sites, config), config)


def _held(sites: Sequence[Site], config: Config) -> Rasters:
    devices = Devices.of(config.devices, config.fsdp)
    if are_divided(sum(site.dsm.size for site in sites), config, devices):
        return DividedRasters.among(devices, sites, config.tile_size)
    return Rasters.from_sites(sites)


def _sampler(
    rasters: Rasters,
    places: Places,
    config: Config,
    shuffle: bool = False,
    draw: SiteDraw | None = None,
) -> TileSampler:
    return TileSampler(
        rasters=rasters,
        places=jnp.asarray(places),
        key=sampling_key(config.seed),
        tile_size=config.tile_size,
        batch_size=config.batch_size,
        thresholds=config.thresholds,
        threshold_range=config.threshold_range if shuffle else None,
        thresholds_per_tile=config.thresholds_per_tile if shuffle else 1,
        shuffle=shuffle,
        augmentation=Augmentation.from_config(config) if shuffle else None,
        draw=draw,
    )
