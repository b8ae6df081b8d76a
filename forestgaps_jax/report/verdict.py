"""Whether a model earns its place: beside what needs no training, in a sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from forestgaps_jax.report.examination import Examination
from forestgaps_jax.report.formats import number

NAMES = {"model": "model", "grey_opening": "grey opening", "all_gap": "all gap"}
"""How the page calls the predictors."""

_PHRASES = {"grey_opening": "the grey opening", "all_gap": "calling everything gap"}
_EQUAL = 0.005  # of mean IoU: less than another seed would change


@dataclass(frozen=True)
class Verdict:
    """The verdict: ``tone`` is who is ahead."""

    tone: Literal["model", "equal", "reference", "open"]
    headline: str
    detail: str = ""


def judge(scores: Mapping[str, Any] | None, examination: Examination | None) -> Verdict:
    """Compare the mean gap IoU of the model with the better of the two references.

    The mean is over the thresholds at which each of them has an IoU.
    """
    if not scores or "model" not in scores:
        return Verdict("open", "Not tested: nothing can be said of what this model is worth.")
    means = _mean_ious(scores)
    references = {name: means[name] for name in means if name != "model"}
    if not math.isfinite(means["model"]) or not references:
        return Verdict("open", "There was no gap to find in the test tiles, at any threshold.")
    best = max(references, key=lambda name: references[name])
    lead = means["model"] - means[best]
    told = f"a mean gap IoU of {number(means['model'])} against {number(means[best])}"
    if abs(lead) < _EQUAL:
        tone, headline = "equal", f"The model is no better than {_PHRASES[best]}: {told}."
    elif lead > 0:
        tone, headline = "model", f"The model is better than what needs no training: {told}."
        headline = f"{headline[:-1]} for {_PHRASES[best]}."
    else:
        tone = "reference"
        headline = f"Here {_PHRASES[best]}, which needs no training, is better than the model: {told}."
        headline = headline.replace(
            told, f"{number(means[best])} mean gap IoU against {number(means['model'])}"
        )
    return Verdict(tone, headline, " ".join(_details(scores, means, best, examination)))


def _mean_ious(scores: Mapping[str, Any]) -> dict[str, float]:
    """Over the same thresholds for all."""
    named = {name: scores[name]["threshold_metrics"] for name in NAMES if name in scores}
    table = np.array([[row["iou"] for row in rows.values()] for rows in named.values()], float)
    shared = np.isfinite(table).all(axis=0)
    means = table[:, shared].mean(axis=1) if shared.any() else np.full(len(table), np.nan)
    return dict(zip(named, map(float, means), strict=True))


def _details(
    scores: Mapping[str, Any], means: Mapping[str, float], best: str, examination: Examination | None
) -> list[str]:
    ours, theirs = (scores[name]["threshold_metrics"] for name in ("model", best))
    ahead = [t for t in ours if ours[t]["iou"] > theirs[t]["iou"]]
    said = [f"The model has the higher IoU at {len(ahead)} of {len(ours)} height thresholds"]
    if examination is not None and best == "grey_opening":
        mine, opening = _tile_ious(examination.model), _tile_ious(examination.opening)
        both = np.isfinite(mine) & np.isfinite(opening)
        won, even = ((mine > opening)[both].sum(), (mine == opening)[both].sum())
        said[0] += f", and on {won:,} of {both.sum():,} pairs of a test tile and a threshold"
        if even:
            said[0] += f" ({even:,} are even)"
    said[0] += "."
    other = next((name for name in means if name not in ("model", best)), None)
    if other:
        said.append(f"{_PHRASES[other].capitalize()} has {number(means[other])}.")
    return said


def _tile_ious(cells: np.ndarray) -> np.ndarray:
    union = cells[..., :3].sum(axis=-1)
    return np.divide(cells[..., 0], union, out=np.full(union.shape, np.nan), where=union > 0)
