"""What a trained model is used for and measured against."""

from forestgaps_jax.inference.baseline import opening_baseline
from forestgaps_jax.inference.comparison import format_table, mean_iou_over_thresholds, score_baselines

__all__ = ["format_table", "mean_iou_over_thresholds", "opening_baseline", "score_baselines"]
