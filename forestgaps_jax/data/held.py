"""Rasters that live on devices, and tiles cut from them inside a compiled step."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from forestgaps_jax.types import Site, pytree_dataclass


class Names(tuple[str, ...]):
    """What is told to readers and is no part of what is compiled: all are equal to jax."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names)

    def __hash__(self) -> int:
        return 0


@pytree_dataclass
class Rasters:
    """The heights of several sites of any shape, end to end, on the device; NaN where not known."""

    dsm: Float[Array, " pixels"]
    chm: Float[Array, " pixels"]
    start: Int[Array, " sites"]
    width: Int[Array, " sites"]
    resolution: Float[Array, " sites"]
    names: Names = field(default=Names(), metadata={"static": True})

    @staticmethod
    def from_sites(sites: Sequence[Site]) -> "Rasters":
        """Put the sites on the device.

        Raises:
            ValueError: together they have 2^31 pixels or more.
        """
        dsm, chm = end_to_end(sites)
        return Rasters(jnp.asarray(dsm), jnp.asarray(chm), **layout(sites))

    def cut(self, places: Int[Array, "batch 3"], size: int) -> Float[Array, "batch size size 2"]:
        """DSM and CHM of square tiles at (site, first row, first column)."""
        site, row, column = places.T
        rows = row[:, None] + jnp.arange(size)
        starts = self.start[site, None] + rows * self.width[site, None] + column[:, None]
        return self._lines(starts, size)

    def _lines(self, starts: Int[Array, "batch size"], size: int) -> Float[Array, "batch size size 2"]:
        return lines((self.dsm, self.chm), starts, size)


def end_to_end(sites: Sequence[Site]) -> tuple[Float[np.ndarray, " pixels"], Float[np.ndarray, " pixels"]]:
    """DSM and CHM of all sites, metres, on the host.

    Raises:
        ValueError: together they have 2^31 pixels or more.
    """
    pixels = sum(site.dsm.size for site in sites)
    if pixels >= 2**31:
        raise ValueError(
            f"the sites have {pixels} pixels together: must be below 2^31; "
            "or stream their files (stream = 'always')"
        )
    dsm, chm = (np.concatenate([getattr(site, name).ravel() for site in sites]) for name in ("dsm", "chm"))
    return dsm, chm


def layout(sites: Sequence[Site]) -> dict[str, Any]:
    """Where each site begins in `end_to_end`, its width, its resolution and its name."""
    sizes = [site.dsm.size for site in sites]
    return {
        "start": jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32),
        "width": jnp.asarray([site.shape[1] for site in sites], jnp.int32),
        "resolution": jnp.asarray([site.grid.resolution for site in sites], jnp.float32),
        "names": Names(site.name for site in sites),
    }


def lines(
    rasters: tuple[Float[Array, " pixels"], ...], starts: Int[Array, "batch rows"], size: int
) -> Float[Array, "batch rows size rasters"]:
    """So many pixels of each raster from each start on."""

    def line(raster: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(raster, (start,), (size,))

    of_all = jax.vmap(jax.vmap(line, (None, 0)), (None, 0))
    return jnp.stack([of_all(raster, starts) for raster in rasters], axis=-1)
