"""From rasters to batches."""

from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.batches import as_batch
from forestgaps_jax.data.geotiff import write_geotiff
from forestgaps_jax.data.held import Rasters
from forestgaps_jax.data.pairs import find_pairs
from forestgaps_jax.data.rasters import read_chm, read_dsm, read_site
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.sources import create_data, load_sites
from forestgaps_jax.data.stream import create_stream, stream
from forestgaps_jax.data.synthetic import put_on_terrain, virtual_forest
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.data.tiles import Split, split_blocks

__all__ = [
    "Augmentation",
    "Rasters",
    "Split",
    "TileSampler",
    "TileStream",
    "as_batch",
    "create_data",
    "create_stream",
    "find_pairs",
    "load_sites",
    "put_on_terrain",
    "read_chm",
    "read_dsm",
    "read_site",
    "split_blocks",
    "stream",
    "virtual_forest",
    "write_geotiff",
]
