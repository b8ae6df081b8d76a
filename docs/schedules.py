"""Draws docs/schedules.png: ``python docs/schedules.py``."""

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np

from forestgaps_jax import Config
from forestgaps_jax.figures import plot_schedules
from forestgaps_jax.optimization import learning_rates

EPOCHS, STEPS = 100, 50
# A made-up validation IoU, for the schedules that follow one: it rises, and stands still now and then.
IOU = 0.8 - 0.5 * np.exp(-np.minimum(np.arange(EPOCHS), 26) / 8)

names = get_args(get_type_hints(Config)["scheduler_type"])
rates = {
    name: learning_rates(Config(scheduler_type=name, epochs=EPOCHS), STEPS, metric=IOU) for name in names
}
plot_schedules(rates).savefig(Path(__file__).with_suffix(".png"), dpi=100)
