"""The files of a map, written strip by strip and shown when all are whole."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forestgaps_jax.data.geotiff import HeightFile
from forestgaps_jax.figures.gap_map import plot_gap_map
from forestgaps_jax.inference.geotiff import (
    CUT,
    DEVIATION,
    MASK,
    PROBABILITY,
    MapKind,
    MapPlace,
    WriteRows,
    write_map,
)
from forestgaps_jax.inference.overview import Overview
from forestgaps_jax.inference.progress import progress_bar
from forestgaps_jax.inference.strips import Strip, predicted_strips
from forestgaps_jax.inference.windows import Windows, count_windows
from forestgaps_jax.state import TrainState


@dataclass(frozen=True)
class MapFiles:
    """Where the maps of a DSM are.

    Attributes:
        mask: GeoTIFF, a band for each threshold: 1 for gap, 0 for none, 255 for not known.
        probability: GeoTIFF, float32; likewise.
        deviation: GeoTIFF of the standard deviation over random passes, or None.
        quicklook: PNG to look at.
    """

    mask: Path
    probability: Path
    deviation: Path | None
    quicklook: Path

    @staticmethod
    def named(folder: Path, stem: str, *, deviation: bool) -> "MapFiles":
        """The files of a DSM called ``stem``."""
        mask, probability, scatter = (
            folder / f"{stem}_{kind.name}.tif" for kind in (MASK, PROBABILITY, DEVIATION)
        )
        return MapFiles(mask, probability, scatter if deviation else None, folder / f"{stem}_quicklook.png")

    def moved_to(self, folder: Path) -> "MapFiles":
        """The same names in another folder."""
        return MapFiles(**{name: path and folder / path.name for name, path in vars(self).items()})

    @property
    def paths(self) -> list[Path]:
        """Those that there are."""
        return [path for path in (self.mask, self.probability, self.deviation, self.quicklook) if path]


@dataclass(frozen=True)
class MapJob:
    """What is to be mapped.

    Attributes:
        state: what predicts.
        dsm: open file of the surface.
        thresholds: canopy heights, metres, in the order of the bands.
        windows: how to cut.
        tags: what the GeoTIFFs say of their making.
    """

    state: TrainState
    dsm: HeightFile
    thresholds: tuple[float, ...]
    windows: Windows
    tags: dict[str, str]


def write_maps(job: MapJob, files: MapFiles, progress: bool) -> tuple[list[int], int]:
    """Write all maps; each is there only when all are whole.

    Returns:
        Gap pixels of each threshold, and known pixels.

    Raises:
        ValueError: the surface is known nowhere, or a strip of it cannot be read.
    """
    folder = files.mask.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
        inside = files.moved_to(Path(unfinished))
        gaps, known, overview = _map(job, inside, progress)
        dsm, *shares = overview.means()
        figure = plot_gap_map(dsm, np.stack(shares), job.thresholds, job.dsm.pixel * overview.factor)
        figure.savefig(inside.quicklook, dpi=150)
        for done, path in zip(inside.paths, files.paths, strict=True):
            os.replace(done, path)
    return gaps, known


def _map(job: MapJob, files: MapFiles, progress: bool) -> tuple[list[int], int, Overview]:
    """Write the GeoTIFFs; gap pixels of each threshold, known pixels, and what the picture shows."""
    shape, bands = job.dsm.shape, len(job.thresholds)
    overview, known, gaps = Overview(shape, 1 + bands), 0, np.zeros(bands, np.int64)
    with ExitStack() as stack:
        writers = _open_maps(stack, job, files)
        bar = stack.enter_context(progress_bar(count_windows(shape, job.windows), progress))
        for strip in _strips(job, bar.update):
            for kind, write in writers.items():
                values = strip.deviation if kind is DEVIATION else strip.probability
                assert values is not None
                write(strip.first_row, kind.values(values))
            here, gap = np.isfinite(strip.dsm), strip.probability >= CUT
            known, gaps = known + int(here.sum()), gaps + gap.sum(axis=(1, 2))
            overview.add(strip.first_row, np.concatenate([strip.dsm[None], np.where(here, gap, np.nan)]))
        if not known:
            low, high = job.dsm.bounds
            raise ValueError(f"{job.dsm.path}: no height from {low:g} to {high:g} m: is it a DSM in metres?")
    return gaps.tolist(), known, overview


def _open_maps(stack: ExitStack, job: MapJob, files: MapFiles) -> dict[MapKind, WriteRows]:
    place = MapPlace(job.dsm.shape, job.dsm.north_up, job.dsm.crs)
    kinds = ((MASK, files.mask), (PROBABILITY, files.probability), (DEVIATION, files.deviation))
    return {
        kind: stack.enter_context(write_map(path, kind, place, job.thresholds, job.tags))
        for kind, path in kinds
        if path
    }


def _strips(job: MapJob, advance: Callable[[int], Any]) -> Iterator[Strip]:
    """Finished rows, bands in the order of ``job.thresholds``."""
    heights, dsm = np.asarray(job.thresholds, np.float32), job.dsm
    rising = np.argsort(heights)
    place = dsm.read_southward, dsm.shape, heights[rising]
    for strip in predicted_strips(job.state, *place, job.windows, dsm.grid().resolution, advance):
        back = np.argsort(rising)
        deviation = None if strip.deviation is None else strip.deviation[back]
        yield strip._replace(probability=strip.probability[back], deviation=deviation)
