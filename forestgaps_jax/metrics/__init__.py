"""Metrics of gaps from exact counts: of pixels, over probability cuts, of outlines, of canopy heights."""

from forestgaps_jax.metrics.analyzer import MetricAnalyzer
from forestgaps_jax.metrics.classification import ThresholdMetrics, summarize_counts, summarize_rows
from forestgaps_jax.metrics.confusion import (
    CELLS,
    ConfusionCounts,
    confusion_matrix,
    confusion_metrics,
    threshold_index,
)
from forestgaps_jax.metrics.counter import ExactCounter
from forestgaps_jax.metrics.curves import (
    PrecisionRecall,
    ProbabilityHistogram,
    average_precision,
    best_cut,
    precision_recall_curve,
    summarize_curves,
)
from forestgaps_jax.metrics.gaps import GapScores, boundary_counts, boundary_f1, object_counts
from forestgaps_jax.metrics.plain import from_json, merge_metrics, to_json
from forestgaps_jax.metrics.regression import RegressionMetrics
from forestgaps_jax.metrics.regression_sums import RegressionSums, regression_metrics
from forestgaps_jax.metrics.segmentation import SegmentationMetrics, iou_metric

__all__ = [
    "CELLS",
    "ConfusionCounts",
    "ExactCounter",
    "GapScores",
    "MetricAnalyzer",
    "PrecisionRecall",
    "ProbabilityHistogram",
    "RegressionMetrics",
    "RegressionSums",
    "SegmentationMetrics",
    "ThresholdMetrics",
    "average_precision",
    "best_cut",
    "boundary_counts",
    "boundary_f1",
    "confusion_matrix",
    "confusion_metrics",
    "from_json",
    "iou_metric",
    "merge_metrics",
    "object_counts",
    "precision_recall_curve",
    "regression_metrics",
    "summarize_counts",
    "summarize_curves",
    "summarize_rows",
    "threshold_index",
    "to_json",
]
