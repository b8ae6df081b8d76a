"""Test tiles as rows of images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from forestgaps_jax.figures.images import error_image, gap_image, probability_image, surface_image
from forestgaps_jax.report.about import position
from forestgaps_jax.report.evidence import Evidence, Shown
from forestgaps_jax.report.formats import height, number, percent
from forestgaps_jax.report.pictures import png_uri
from forestgaps_jax.types import Site


def tile_rows(evidence: Evidence, shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """A row a tile: where it is, how it scores, and its images with what they show in words."""
    assert evidence.examination is not None
    assert evidence.sites is not None
    return [
        {
            **_scores(evidence, each),
            "site": evidence.sites[each.tile.place[0]].name,
            "place": _place(evidence.sites[each.tile.place[0]], each),
            "corner": f"row {each.tile.place[1]:,}, column {each.tile.place[2]:,}",
            "threshold": height(each.tile.threshold),
            "decided": each.tile.probability.dtype == bool,
            "images": _images(evidence.sites[each.tile.place[0]], each),
        }
        for each in shown
    ]


def _scores(evidence: Evidence, shown: Shown) -> dict[str, str]:
    assert evidence.examination is not None
    index = shown.threshold_index, shown.tile_index
    model, opening = evidence.examination.model[index], evidence.examination.opening[index]
    tp, fp, fn, _ = (int(n) for n in model)
    known = int(model.sum())
    return {
        "gaps": percent((tp + fn) / known if known else math.nan),
        "wrong": percent((fp + fn) / known if known else math.nan),
        "iou": number(_iou(model)),
        "opening": number(_iou(opening)),
    }


def _iou(cells: np.ndarray) -> float:
    union = int(cells[:3].sum())
    return int(cells[0]) / union if union else math.nan


def _place(site: Site, shown: Shown) -> str:
    middle = shown.tile.dsm.shape[0] / 2
    return position(site.grid, shown.tile.place[1] + middle, shown.tile.place[2] + middle)


def _images(site: Site, shown: Shown) -> list[dict[str, str]]:
    tile = shown.tile
    predicted, decided = tile.probability > 0.5, tile.probability.dtype == bool
    answer = gap_image(predicted, tile.valid) if decided else probability_image(tile.probability, tile.valid)
    where = f"{site.name}, row {tile.place[1]}, column {tile.place[2]}"
    below = f"gaps below {height(tile.threshold)}"
    images = (
        ("surface", surface_image(tile.dsm, site.grid.resolution), f"hillshade of the surface, {where}"),
        ("truth", gap_image(tile.truth, tile.valid), f"true {below}, {where}"),
        ("prediction", answer, f"predicted {below}, {where}"),
        ("errors", error_image(predicted, tile.truth, tile.valid), f"right and wrong {below}, {where}"),
    )
    return [{"kind": kind, "uri": png_uri(image), "alt": alt} for kind, image, alt in images]
