"""Draws docs/augmentation.png: ``python docs/augmentation.py``."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.data import sensor, terrain, virtual_forest
from forestgaps_jax.data.augment import turn
from forestgaps_jax.data.zoom import zoom
from forestgaps_jax.figures.augmentation import AugmentedTile, plot_augmentation

SIZE, RESOLUTION, KEY = 80, jnp.float32(1.0), jax.random.key(8)
site = virtual_forest(2, (SIZE, SIZE), slope=6.0)
dsm, chm = jnp.asarray(site.dsm), jnp.asarray(site.chm)
turned = turn(jnp.stack([dsm, chm], axis=-1), jnp.int32(5))
zoomed = zoom(jnp.stack([dsm, chm], axis=-1), jnp.float32([30, 20]), jnp.float32(0.5))

plane = terrain.tilted_plane(SIZE, RESOLUTION, jnp.float32(30.0), jnp.float32(0.5))
relief = 15 * terrain.fractal_relief(SIZE, RESOLUTION, KEY)
valley = terrain.ridge(SIZE, RESOLUTION, jnp.float32(-15.0), jax.random.key(31))
moved = {
    "as it is": (dsm, chm, 1.0),
    "turned": (turned[..., 0], turned[..., 1], 1.0),
    "resolution x 0.5": (zoomed[..., 0], zoomed[..., 1], 0.5),
    "height x 1.4": (dsm + 0.4 * chm, 1.4 * chm, 1.0),
    "tilt 30 degrees": (dsm + plane, chm, 1.0),
    "relief 15 m": (dsm + relief, chm, 1.0),
    "ridges 15 m (a valley)": (dsm + valley, chm, 1.0),
}
missing = sensor.blobs(SIZE, jnp.float32(4.0), jnp.float32(0.15), KEY)
seen = {
    "smoothing 7 m": sensor.grey_closing(dsm, jnp.int32(3)),
    "blur 1.5 m": sensor.blur(dsm, jnp.float32(1.5)),
    "pits 0.1": sensor.add_pits(dsm, chm, jnp.float32(0.1), KEY),
    "noise 0.5 m": dsm + 0.5 * sensor.noise(SIZE, RESOLUTION, KEY),
    "missing 0.15": jnp.where(missing, jnp.nan, dsm),
}
tiles = {
    title: AugmentedTile(np.asarray(surface), np.asarray(canopy), np.asarray(surface - canopy), side)
    for title, (surface, canopy, side) in moved.items()
}
truth = tiles["as it is"]
tiles |= {title: truth._replace(dsm=np.asarray(surface)) for title, surface in seen.items()}
plot_augmentation(tiles, 5.0).savefig(Path(__file__).with_suffix(".png"), dpi=90)
