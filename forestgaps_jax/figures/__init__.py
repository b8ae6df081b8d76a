"""Pictures of tiles, scores and trainings; each function returns a matplotlib Figure."""

from forestgaps_jax.figures.curves import plot_history, plot_thresholds
from forestgaps_jax.figures.maps import hillshade, plot_sites, plot_tiles

__all__ = ["hillshade", "plot_history", "plot_sites", "plot_thresholds", "plot_tiles"]
