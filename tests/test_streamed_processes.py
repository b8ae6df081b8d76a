"""Two processes train on one stream: they come to what one comes to, count together, stop and go on."""

import copy
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from forestgaps_jax import Config, checkpoint
from forestgaps_jax.cli import main
from forestgaps_jax.data import create_stream
from tests.data.test_shared_streams import at
from tests.data.test_stream import cut_off, write_pair
from tests.in_processes import end, free_port, start, start_trainings
from tests.survival import Runner

SETTINGS = """
epochs = 2
batch_size = 4
features = 2
depth = 1
tile_size = 16
split_buffer = 0.0
thresholds = [5.0, 10.0, 15.0]
sites = ["plots"]
stream = "always"
figure_tiles = 0
vis_save_frequency = 0
gap_scores = false
use_tensorboard = false
use_progress_bar = false
"""


def write_rasters(folder):
    """Plots to train on, of which the second is cut off; and a row of two pairs, two tiles each."""
    write_pair(folder / "plots", 0, (64, 96))
    _, chm = write_pair(folder / "plots", 1, (80, 96), **at(200))
    cut_off(chm, 0.7)
    for number in range(2):
        write_pair(folder / "row", number, (16, 32), **at(32 * number))


def run_of(runner, name):
    other = copy.copy(runner)
    other.run_folder = runner.folder / "runs" / name
    return other
