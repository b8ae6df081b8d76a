"""Streams of tiles over GeoTIFF pairs: for what memory cannot hold."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from forestgaps_jax.config import Config
from forestgaps_jax.data.geotiff import FilePath
from forestgaps_jax.data.pairs import with_pairs
from forestgaps_jax.data.tile_stream import TileStream, import_grain
from forestgaps_jax.data.tiles import all_tiles, split_blocks
from forestgaps_jax.data.windows import Pair, open_pair
from forestgaps_jax.parallel import own_share
from forestgaps_jax.types import Data

Pairs = FilePath | Sequence[Any]
"""A folder, a glob or a manifest (see `find_pairs`); or (DSM path, CHM path[, name]) each, or opened."""


def stream(
    pairs: Pairs, config: Config, *, shuffle: bool = True, share: tuple[int, int] | None = None
) -> TileStream:
    """Tiles of GeoTIFF pairs, read from disk batch by batch: a source for `train` and `evaluate`.

    All of the ground of all pairs is read: pairs that train and pairs that validate are to be given apart,
    as two streams; or see `create_stream`. A tile is not looked at before it is read, so
    ``min_valid_fraction`` does not act here; pixels without heights are not valid, as everywhere. A tile that
    cannot be read (its file is cut off) has no valid pixel: nothing is learnt from it, and a warning at the
    end of the epoch counts such tiles by file, also those before a resume.

    Files in tiles are read fastest, as GDAL reads whole blocks: ``gdal_translate -co TILED=YES``.

    Args:
        pairs: (DSM, CHM) each; see `read_site` for what they are. Both must lie on one grid, or be shifted
            by whole pixels. Or the path of a folder, a glob or a manifest, as `find_pairs` takes it.
        config: ``tile_size``, ``tile_overlap``, ``batch_size``, thresholds, augmentation, ``site_weights``
            and ``seed``.
        shuffle: for training: overlapping tiles in another order each epoch, augmented, at thresholds that
            are drawn. Otherwise tiles side by side, in order, as they are, each at every listed threshold.
        share: number of this process, from 0, and of all that share each batch; by default those of jax.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no pair, a file is no raster of heights, both of a pair lie on different grids,
            or no pair holds a tile; weights that are not one for each pair.
        ImportError: grain or rasterio is not installed.

    >>> val = stream(other_pairs, config, shuffle=False)  # doctest: +SKIP
    >>> train(state, config, {"train": stream(pairs, config), "val": val})  # doctest: +SKIP
    """
    import_grain()
    opened, weights = _opened(pairs, config)
    try:
        places = all_tiles(opened, config, training=shuffle)
    except ValueError as error:
        shapes = ", ".join(f"{height} x {width}" for height, width in (pair.shape for pair in opened[:8]))
        raise ValueError(f"{error} (the common grounds have {shapes} px)") from None
    source = TileStream(opened, places, replace(config), shuffle, share=share or own_share())
    return _weighted(source, weights) if shuffle else source


def create_stream(pairs: Pairs, config: Config, *, share: tuple[int, int] | None = None) -> Data:
    """Split pairs by blocks of ground, as `create_data` does, into streams for training, validation and test.

    Where they lie alone decides: no pixel is read, so blocks without heights are dealt too.

    Args:
        pairs: as for `stream`.
        config: as for `stream`; and ``block_size``, ``split_buffer``, ``val_fraction``, ``test_fraction``.
        share: as for `stream`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as `stream`; or the pairs are too small to be split.
        ImportError: grain or rasterio is not installed.
    """
    import_grain()
    opened, weights = _opened(pairs, config)
    split = split_blocks(opened, config)
    # A copy: the settings are those of now.
    train = TileStream(opened, split.train, replace(config), True, share=share or own_share())
    val, test = (replace(train, places=part, shuffle=False) for part in (split.val, split.test))
    return Data(
        _weighted(train, weights), val if len(val.places) else None, test if len(test.places) else None
    )


def open_pairs(config: Config) -> tuple[Pair, ...]:
    """The pairs of settings, looked at without reading a pixel; errors are those of `stream`."""
    config = with_pairs(config)
    names = config.site_names or [""] * len(config.dsm)
    return tuple(map(_open, zip(config.dsm, config.chm, names, strict=True)))


def _opened(pairs: Pairs, config: Config) -> tuple[tuple[Pair, ...], Sequence[float]]:
    """The pairs, looked at, and their weights, if there are any."""
    if isinstance(pairs, str | PathLike):
        config = with_pairs(replace(config, dsm=(), chm=(), chm_only=(), site_names=(), sites=(str(pairs),)))
        pairs = open_pairs(config)
    if not pairs:
        raise ValueError("pairs is empty: give one (DSM path, CHM path) or more")
    return tuple(pair if isinstance(pair, Pair) else _open(pair) for pair in pairs), config.site_weights


def _open(pair: Any) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) not in (2, 3):
        raise ValueError(f"pairs holds {pair!r}: must be (DSM path, CHM path) each")
    return open_pair(*pair[:2], name="".join(pair[2:]))


def _weighted(source: TileStream, weights: Sequence[float]) -> TileStream:
    if not weights:
        return source
    if len(weights) != len(source.pairs):
        raise ValueError(f"site_weights = {weights}: must be one for each pair, here {len(source.pairs)}")
    tiles = np.bincount(source.places[:, 0], minlength=len(weights))
    drawn = tuple(np.where(tiles > 0, weights, 0.0).tolist())
    if not any(drawn):
        raise ValueError(
            f"site_weights = {weights}: no pair that has training tiles has a weight; training tiles by "
            f"pair: {tiles.tolist()}"
        )
    return replace(source, weights=drawn)
