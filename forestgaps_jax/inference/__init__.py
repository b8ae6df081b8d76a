"""What a trained model is used for and measured against."""

from forestgaps_jax.inference.arrays import predict_array, predict_deviation
from forestgaps_jax.inference.baseline import opening_baseline
from forestgaps_jax.inference.comparison import format_table, mean_iou_over_thresholds, score_baselines
from forestgaps_jax.inference.gap_grid import GapFraction, gap_fraction, gap_fraction_agreement
from forestgaps_jax.inference.gap_heights import gini
from forestgaps_jax.inference.gap_sizes import ZetaFit, fit_zeta
from forestgaps_jax.inference.gap_summary import fit_gap_sizes, gap_statistics
from forestgaps_jax.inference.gaps import Gaps, extract_gaps
from forestgaps_jax.inference.loading import load_run
from forestgaps_jax.inference.mapping import Maps, predict_raster
from forestgaps_jax.inference.polygons import gap_polygons, write_geopackage
from forestgaps_jax.inference.sliding_window import sliding_window_inference
from forestgaps_jax.inference.survey import format_gap_table, survey_gaps

__all__ = [
    "GapFraction",
    "Gaps",
    "Maps",
    "ZetaFit",
    "extract_gaps",
    "fit_gap_sizes",
    "fit_zeta",
    "format_gap_table",
    "format_table",
    "gap_fraction",
    "gap_fraction_agreement",
    "gap_polygons",
    "gap_statistics",
    "gini",
    "load_run",
    "mean_iou_over_thresholds",
    "opening_baseline",
    "predict_array",
    "predict_deviation",
    "predict_raster",
    "score_baselines",
    "sliding_window_inference",
    "survey_gaps",
    "write_geopackage",
]
