"""Gap maps of whole rasters, of any size, from file to file."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from forestgaps_jax.config import Config
from forestgaps_jax.data.geotiff import FilePath, open_heights
from forestgaps_jax.inference.arrays import check_thresholds
from forestgaps_jax.inference.domain import warn_of_unfamiliar
from forestgaps_jax.inference.loading import load_run
from forestgaps_jax.inference.map_files import MapFiles, MapJob, write_maps
from forestgaps_jax.inference.passes import check_windows
from forestgaps_jax.inference.windows import Windows
from forestgaps_jax.state import TrainState


@dataclass(frozen=True)
class Maps(MapFiles):
    """What `predict_raster` has written, and how much gap there is; `print` it for a summary.

    Attributes:
        gap_shares: share of gap among the known pixels, by threshold (m).
        known_area: of the pixels whose surface is known, hectares.
    """

    gap_shares: dict[float, float]
    known_area: float

    def __str__(self) -> str:
        shares = [f"gap below {t:4g} m  {share:6.1%}" for t, share in self.gap_shares.items()]
        files = [f"{path}  {path.stat().st_size / 1e6:.1f} MB" for path in self.paths]
        return "\n".join([f"{self.known_area:,.2f} ha with a known surface", *shares, *files])


def predict_raster(
    model: TrainState | FilePath,
    dsm_path: FilePath,
    thresholds: Sequence[float] = (),
    out_folder: FilePath = "maps",
    *,
    config: Config | None = None,
    checkpoint: Literal["best", "last"] = "best",
    tile_size: int | None = None,
    overlap: float = 0.5,
    batch_size: int | None = None,
    flips: bool = False,
    samples: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Maps:
    """Map the gaps of a DSM: Cloud-Optimised GeoTIFFs of probability and mask, and a picture.

    The raster is read, mapped and written in strips of a window's height: memory grows with its width, not
    with its height. No file is there before all are whole.

    Args:
        model: a run folder; or a state, with its ``config``.
        dsm_path: one-band GeoTIFF of surface heights, projected in metres.
        thresholds: canopy heights, metres, a band for each; those of the training for none.
        out_folder: where the maps go, named after the DSM; it is made if it is missing.
        config: settings of a state.
        checkpoint: which of a run folder.
        tile_size: side of a window, pixels; that of the training for None.
        overlap: share of a window that the next one repeats.
        batch_size: windows that are computed at once; that of the training for None.
        flips: mean over the 8 symmetries of the square: 8 times the work.
        samples: random passes for a map of the standard deviation; 0 for none.
        overwrite: replace maps that are there.
        progress: show a bar.

    Raises:
        FileNotFoundError: no run, checkpoint or DSM.
        FileExistsError: maps that are there already, without ``overwrite``.
        ValueError: a DSM that is not in metres, rotated or broken, or has no known height; thresholds or
            windows that cannot be; random passes where nothing in the network is random.
    """
    if isinstance(model, TrainState):
        if config is None:
            raise ValueError("a state comes without its settings: give config too, or a run folder")
        state, origin = model, config.name
    else:
        state, config = load_run(Path(model), checkpoint)
        origin = Path(model).resolve().name
    windows = Windows(tile_size or config.tile_size, overlap, batch_size or config.batch_size, flips, samples)
    check_windows(state, windows)
    heights = [float(height) for height in check_thresholds(thresholds or config.thresholds)]
    with open_heights(dsm_path) as dsm:
        resolution = dsm.grid().resolution
        files = MapFiles.named(Path(out_folder), dsm.path.stem.removesuffix("_DSM"), deviation=samples > 0)
        if there := [str(path) for path in files.paths if path.exists() and not overwrite]:
            raise FileExistsError(
                f"{', '.join(there)}: there already; choose another folder or overwrite (--overwrite)"
            )
        warn_of_unfamiliar(config, heights, resolution)
        tags = {"dsm": dsm.path.name, "run": origin, "model": config.model_name, **_making(state, windows)}
        gaps, known = write_maps(MapJob(state, dsm, tuple(heights), windows, tags), files, progress)
    shares = {height: pixels / known for height, pixels in zip(heights, gaps, strict=True)}
    return Maps(**vars(files), gap_shares=shares, known_area=known * resolution**2 / 1e4)


def _making(state: TrainState, windows: Windows) -> dict[str, str]:
    """What QGIS and gdalinfo show of how a map was made."""
    try:
        number = version("forestgaps-jax")
    except PackageNotFoundError:
        number = "not installed"
    symmetries = 8 if windows.flips else 1
    return {
        "step": str(int(state.step)),
        "windows": f"{windows.tile_size} px, overlap {windows.overlap:g}, symmetries {symmetries}",
        "samples": str(windows.samples),
        "software": f"forestgaps_jax {number}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
