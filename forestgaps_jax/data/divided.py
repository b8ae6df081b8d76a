"""Rasters that the devices of a process hold together, each a part."""

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from forestgaps_jax.data.held import Rasters, end_to_end, layout, lines
from forestgaps_jax.parallel import AXES, AXES_HERE, Devices
from forestgaps_jax.types import Site, pytree_dataclass

_PARTS = PartitionSpec(AXES_HERE)


@pytree_dataclass
class DividedRasters(Rasters):
    """Rasters of which each device of a process holds a part; each process has all parts.

    A part ends with the first pixels of the next, so that a row of a tile lies whole in the part that it
    begins in. Each device cuts the rows that begin in its own part, for the tiles of all devices of its
    process, and these then give each other what is theirs (a reduce-scatter): tiles travel, rasters do not.

    Attributes:
        dsm: ``[parts, pixels]`` metres; a part a device, ``tile_size`` pixels more than it is long.
        chm: likewise.
        tile_size: side of the largest tile that can be cut, pixels.
        mesh: of the devices that batches are cut for: those of this process, or of all.
    """

    dsm: Float[Array, "parts pixels"]
    chm: Float[Array, "parts pixels"]
    # Defaults that nobody takes: a dataclass asks for them after that of names.
    tile_size: int = field(default=0, metadata={"static": True})
    mesh: Mesh = field(default=None, metadata={"static": True})  # type: ignore[assignment]

    @staticmethod
    def among(devices: Devices, sites: Sequence[Site], tile_size: int) -> "DividedRasters":
        """Put parts of the sites on the devices of this process; none of them ever holds the whole.

        Args:
            devices: several.
            sites: the same in every process.
            tile_size: side of a tile, pixels.

        Raises:
            ValueError: together they have 2^31 pixels or more.
        """
        assert devices.mesh is not None
        mesh = devices.mesh.local_mesh
        rasters = end_to_end(sites)
        length = -(-rasters[0].size // mesh.size)

        def part(raster: np.ndarray, where: Any) -> np.ndarray:
            first = (where[0].start or 0) * length
            held = raster[first : first + length + tile_size]
            return np.pad(held, (0, length + tile_size - len(held)))[None]

        shape, sharding = (mesh.size, length + tile_size), NamedSharding(mesh, _PARTS)
        dsm, chm = (
            jax.make_array_from_callback(shape, sharding, partial(part, raster)) for raster in rasters
        )
        return DividedRasters(dsm, chm, **layout(sites), tile_size=tile_size, mesh=mesh)

    def on(self, devices: Devices) -> "DividedRasters":
        """The same parts, for a computation of the devices of all processes; nothing is copied.

        Raises:
            ValueError: they lie on other devices of this process.
        """
        if devices.mesh is None or devices.mesh.local_mesh != self.mesh.local_mesh:
            raise ValueError(
                f"the rasters were divided among {self.mesh.local_mesh.size} devices, and these are "
                f"{devices.count_here}: make the data with the same settings of devices and fsdp"
            )
        sharding = NamedSharding(devices.mesh, _PARTS)

        def renamed(leaf: jax.Array) -> jax.Array:
            held = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, held)

        parts = {"dsm": renamed(self.dsm), "chm": renamed(self.chm)}
        whole = devices.replicate({name: getattr(self, name) for name in ("start", "width", "resolution")})
        return replace(self, **parts, **whole, mesh=devices.mesh)

    def _lines(self, starts: Int[Array, "batch size"], size: int) -> Float[Array, "batch size size 2"]:
        if size > self.tile_size:
            raise ValueError(f"tiles of {size} px: the rasters were divided for {self.tile_size} px at most")
        specs = {"in_specs": (_PARTS, _PARTS, PartitionSpec("process")), "out_specs": PartitionSpec(AXES)}
        length = self.dsm.shape[1] - self.tile_size
        exchange = jax.shard_map(partial(_exchanged, size=size, length=length), mesh=self.mesh, **specs)
        spare = -starts.shape[0] % self.mesh.size
        tiles = exchange(self.dsm, self.chm, jnp.pad(starts, ((0, spare), (0, 0))))
        return tiles[: starts.shape[0]]


def _exchanged(dsm: Array, chm: Array, starts: Array, size: int, length: int) -> Array:
    """A device's tiles, of the rows that all devices of its process cut from their parts."""
    within = starts - jax.lax.axis_index(AXES_HERE) * length
    own = (within >= 0) & (within < length)
    cut = lines((dsm[0], chm[0]), jnp.where(own, within, 0), size)
    return jax.lax.psum_scatter(jnp.where(own[..., None, None], cut, 0.0), AXES_HERE, tiled=True)
