"""Scores of gaps as shapes: of their outlines, and of each gap as one object."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from jaxtyping import Bool, Int

from forestgaps_jax.metrics.pixels import same_shape

_CORNERS_TOUCH = np.ones((3, 3), bool)
_BOUNDARY, _OBJECTS = slice(0, 4), slice(4, 8)


def boundary_counts(
    predicted: Bool[np.ndarray, "height width"],
    truth: Bool[np.ndarray, "height width"],
    tolerance: float,
    valid: Bool[np.ndarray, "height width"] | None = None,
) -> Int[np.ndarray, " 4"]:
    """Pixels of the predicted outline near the true one, all of them, and the same the other way round.

    The outline is made of the gap pixels that have a pixel known not to be gap on one of their four sides:
    where a gap is cut by the tile's edge or by unknown ground there is none. For the boundary F1 of Csurka,
    Larlus and Perronnin (2013), What is a good evaluation measure for semantic segmentation?

    Args:
        predicted: True where gap is predicted.
        truth: True where there is gap.
        tolerance: how far (pixels, centre to centre) two outlines may be apart.
        valid: pixels that are known; None for all.
    """
    known = np.ones_like(truth) if valid is None else valid
    outlines = [_outline(predicted, known), _outline(truth, known)]
    near = [_near(outline, tolerance) for outline in outlines]
    (ours, theirs), (near_ours, near_theirs) = outlines, near
    parts = ours & near_theirs, ours, theirs & near_ours, theirs
    return np.array([np.count_nonzero(part) for part in parts])


def boundary_f1(
    predicted: Bool[np.ndarray, "height width"],
    truth: Bool[np.ndarray, "height width"],
    tolerance: float = 2,
    valid: Bool[np.ndarray, "height width"] | None = None,
) -> float:
    """Boundary F1 of one tile (see `boundary_counts`); NaN where there is no outline at all.

    >>> truth = np.zeros((8, 8), bool)
    >>> truth[2:5, 2:5] = True
    >>> boundary_f1(np.roll(truth, 1, axis=1), truth, tolerance=1)
    1.0
    """
    return _scores(boundary_counts(predicted, truth, tolerance, valid))["f1"]


def object_counts(
    predicted: Bool[np.ndarray, "height width"],
    truth: Bool[np.ndarray, "height width"],
    min_area: int = 1,
    valid: Bool[np.ndarray, "height width"] | None = None,
) -> Int[np.ndarray, " 4"]:
    """Predicted gaps that match a true one, all of them, and the same the other way round.

    A gap is a set of pixels that touch by their sides or corners. Two match where the area that they share
    is more than half of the area that they cover together, so that no gap has two matches (Kirillov et al.
    2019, Panoptic Segmentation).

    >>> truth = np.array([[1, 1, 0, 0, 1]], bool)
    >>> object_counts(np.array([[1, 1, 0, 0, 0]], bool), truth).tolist()
    [1, 1, 1, 2]

    Args:
        predicted: True where gap is predicted.
        truth: True where there is gap.
        min_area: least size (pixels) of a gap that is counted; a smaller one still serves as a match.
        valid: pixels that are known; None for all.
    """
    known = np.ones_like(truth) if valid is None else valid
    ours, n_ours = scipy.ndimage.label(predicted & known, _CORNERS_TOUCH)  # type: ignore[misc]  # SciPy has no types
    theirs, n_theirs = scipy.ndimage.label(truth & known, _CORNERS_TOUCH)  # type: ignore[misc]  # SciPy has no types
    pairs = ours.ravel() * (n_theirs + 1) + theirs.ravel()
    shared = np.bincount(pairs, minlength=(n_ours + 1) * (n_theirs + 1)).reshape(n_ours + 1, n_theirs + 1)
    areas, true_areas = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    shared = shared[1:, 1:]
    match = 2 * shared > areas[:, None] + true_areas - shared
    large, true_large = areas >= min_area, true_areas >= min_area
    parts = match.any(axis=1) & large, large, match.any(axis=0) & true_large, true_large
    return np.array([np.count_nonzero(part) for part in parts])


class GapScores:
    """Adds up outlines and gaps over tiles; ratios are taken at the end. On the host.

    A gap that several tiles cut is one in each.

    Args:
        tolerance: how far (pixels) outlines may be apart.
        min_area: least size (pixels) of a gap that is counted.

    >>> scores = GapScores(tolerance=1)
    >>> truth = np.array([[[1, 1, 0, 0, 1]]], bool)
    >>> scores.update(np.array([[[1, 1, 0, 0, 0]]], bool), truth)
    >>> result = scores.compute()
    >>> result["gaps_found"], result["gaps_missed"], result["object_precision"]
    (1, 1, 1.0)

    Raises:
        ValueError: a tolerance below 0, or an area below 1.
    """

    def __init__(self, tolerance: float = 2, min_area: int = 1):
        if not tolerance >= 0 or not min_area >= 1:
            raise ValueError(
                f"tolerance = {tolerance}, min_area = {min_area}: must be 0 or more, and 1 or more, pixels"
            )
        self.tolerance = tolerance
        self.min_area = min_area
        self._counts: dict[int, np.ndarray] = {}

    def update(self, predicted: Any, truth: Any, valid: Any = None, group: Any = None) -> None:
        """Score a batch of tiles.

        Args:
            predicted: True where gap is predicted: ``[batch, height, width]``, with or without a channel.
            truth: 1 (or True) where there is gap.
            valid: pixels that are known; None for all.
            group: the row (place in the list of thresholds) that each sample belongs to; None for the first.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: predictions are not boolean.
        """
        images = same_shape(predicted=predicted, truth=truth, valid=valid)
        ours, theirs = np.asarray(images[0]), np.asarray(images[1])
        known = np.ones(ours.shape, bool) if valid is None else np.asarray(images[2]) != 0
        if ours.dtype != bool:
            raise TypeError(f"predicted is {ours.dtype}: must be bool, such as probabilities > 0.5")
        groups = np.zeros(len(ours), int) if group is None else np.asarray(group)
        if groups.shape != (len(ours),):
            raise ValueError(f"group has shape {groups.shape}: must be ({len(ours)},), one a sample")
        for row, tile, true_tile, known_tile in zip(groups, ours, theirs != 0, known, strict=True):
            if known_tile.any():
                boundary = boundary_counts(tile, true_tile, self.tolerance, known_tile)
                objects = object_counts(tile, true_tile, self.min_area, known_tile)
                before = self._counts.get(int(row), 0)
                self._counts[int(row)] = before + np.concatenate([boundary, objects])

    def compute(self, thresholds: Sequence[float] = ()) -> dict[str, Any]:
        """The scores of all tiles, and per threshold.

        Args:
            thresholds: the heights (metres) that the groups stand for, in order; tiles of further groups
                count in the whole only.

        Returns:
            ``boundary_precision``, ``boundary_recall``, ``boundary_f1``, ``object_precision``,
            ``object_recall``, ``object_f1`` (NaN where undefined), ``gaps_found``, ``gaps_missed`` and
            ``gaps_false`` (numbers of gaps), and ``"threshold_metrics"``: the same by height, for those
            that had tiles.
        """
        whole = sum(self._counts.values(), np.zeros(8, int))
        per_threshold = {
            float(height): _gap_metrics(self._counts[row])
            for row, height in enumerate(thresholds)
            if row in self._counts
        }
        return {**_gap_metrics(whole), "threshold_metrics": per_threshold}


def _gap_metrics(counts: Int[np.ndarray, " 8"]) -> dict[str, float | int]:
    matched, predicted, found, true = (int(n) for n in counts[_OBJECTS])
    boundary, objects = _scores(counts[_BOUNDARY]), _scores(counts[_OBJECTS])
    return {
        **{f"boundary_{name}": value for name, value in boundary.items()},
        **{f"object_{name}": value for name, value in objects.items()},
        "gaps_found": found,
        "gaps_missed": true - found,
        "gaps_false": predicted - matched,
    }


def _scores(counts: Int[np.ndarray, " 4"]) -> dict[str, float]:
    """Precision, recall and their harmonic mean, which is 0 where one side alone is empty."""
    matched, predicted, found, true = (int(n) for n in counts)
    precision = matched / predicted if predicted else np.nan
    recall = found / true if true else np.nan
    if not predicted and not true:
        f1 = np.nan
    else:
        f1 = 2 * precision * recall / (precision + recall) if matched and found else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def _outline(gap: np.ndarray, known: np.ndarray) -> np.ndarray:
    inside = scipy.ndimage.binary_erosion(gap | ~known, border_value=1)
    return gap & known & np.logical_not(inside)


def _near(outline: np.ndarray, tolerance: float) -> np.ndarray:
    if not outline.any():
        return np.zeros_like(outline)
    return scipy.ndimage.distance_transform_edt(~outline) <= tolerance  # type: ignore[operator]  # SciPy has no types
