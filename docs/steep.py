"""Draws docs/steep.png from a run of configs/general.toml: ``python docs/steep.py runs/general``."""

import sys
from pathlib import Path

import numpy as np

from forestgaps_jax.data import virtual_forest
from forestgaps_jax.figures.canvas import hide_ticks, new_figure
from forestgaps_jax.figures.images import error_image, gap_image, surface_image
from forestgaps_jax.inference import load_run, opening_baseline, predict_array

THRESHOLD, SIZE = 10.0, 256
# The training drew seeds 0 to 119.
site = virtual_forest(9035, (512, 512), slope=35.0, closure=0.98, height=30.0)
state, config = load_run(sys.argv[1])
found = predict_array(state, site.dsm, [THRESHOLD], resolution=1.0, tile_size=config.tile_size)[0] >= 0.5
opened = opening_baseline(site.dsm, 1.0) < THRESHOLD
true = site.chm < THRESHOLD

part = np.s_[:SIZE, -SIZE:]
known = np.ones((SIZE, SIZE), bool)
pictures = {
    "surface (hillshade)": surface_image(site.dsm[part]),
    f"true gaps below {THRESHOLD:g} m": gap_image(true[part], known),
    "network: right, false, missed": error_image(found[part], true[part], known),
    "grey opening: right, false, missed": error_image(opened[part], true[part], known),
}
figure = new_figure(13.0, 3.6)
axes = figure.subplots(1, len(pictures), squeeze=False)
for axis, (title, picture) in zip(axes[0], pictures.items(), strict=True):
    axis.imshow(picture)
    axis.set_title(title, fontsize=10)
hide_ticks(axes)
figure.savefig(Path(__file__).with_name("steep.png"), dpi=110)
