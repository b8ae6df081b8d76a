"""Pictures of tiles, scores and trainings; each function returns a matplotlib Figure."""

from forestgaps_jax.figures.augmentation import plot_augmentation
from forestgaps_jax.figures.calibration import plot_reliability
from forestgaps_jax.figures.confusion import plot_confusion, plot_precision_recall
from forestgaps_jax.figures.curves import plot_history, plot_thresholds
from forestgaps_jax.figures.gaps import plot_gap_sizes
from forestgaps_jax.figures.maps import hillshade, plot_sites, plot_tiles
from forestgaps_jax.figures.schedules import plot_schedules

__all__ = [
    "hillshade",
    "plot_augmentation",
    "plot_confusion",
    "plot_gap_sizes",
    "plot_history",
    "plot_precision_recall",
    "plot_reliability",
    "plot_schedules",
    "plot_sites",
    "plot_thresholds",
    "plot_tiles",
]
