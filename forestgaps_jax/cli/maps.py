"""The commands that follow a training: predict, report, gaps."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal


def predict(argv: list[str]) -> None:
    """Map the gaps of a raster."""
    import tyro

    @dataclass
    class Prediction:
        run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_FOLDER")]
        """Folder of a run, as train has made it."""
        dsm: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DSM.tif")]
        """GeoTIFF of surface heights, metres, in a projected CRS in metres."""
        threshold: tuple[float, ...] = ()
        """Canopy heights (m) below which a pixel is gap, a band of the maps for each; left out: those of the
        training."""
        out: str = "maps"
        """Folder for the maps, which are named after the DSM."""
        checkpoint: Literal["best", "last"] = "best"
        """Which checkpoint predicts."""
        tile_size: int | None = None
        """Side (px) of the windows that the raster is cut into; left out: tile_size of the training."""
        overlap: float = 0.5
        """Share of a window that the next one repeats. 0.5 looks at each pixel four times; less is faster,
        and borders of windows show sooner."""
        batch_size: int | None = None
        """Windows that are computed at once; left out: batch_size of the training."""
        flips: bool = False
        """Mean over the 8 turns and mirrorings of each window: steadier, 8 times the work."""
        samples: int = 0
        """Passes with stochastic depth and dropout at work, for a map of their scatter; 0: none."""
        overwrite: bool = False
        """Replace maps that are there."""

    settings = tyro.cli(
        Prediction,
        args=argv,
        prog="forestgaps-jax predict",
        description="Map the gaps of a whole DSM, of any size: DSM_mask.tif (1 gap, 0 none, 255 not known), "
        "DSM_probability.tif (both Cloud-Optimised GeoTIFFs with a band for each threshold, for QGIS and "
        "GDAL) and DSM_quicklook.png. Then: forestgaps-jax gaps MASK.tif.",
    )
    from forestgaps_jax.inference import predict_raster

    options = dict(vars(settings))
    model, dsm, thresholds, out = (options.pop(name) for name in ("run_folder", "dsm", "threshold", "out"))
    maps = predict_raster(model, dsm, thresholds, out, progress=True, **options)
    print(f"{maps}\n\nas polygons: forestgaps-jax gaps {shlex.quote(str(maps.mask))}")


def report(argv: list[str]) -> None:
    """Write a run as one page."""
    import tyro

    @dataclass
    class Report:
        run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_FOLDER")]
        """Folder of a run, as train has made it."""
        out: str | None = None
        """File to write; left out: report.html in the run folder."""
        checkpoint: Literal["best", "last"] = "best"
        """Whose answers are shown on the test tiles."""
        open: bool = False
        """Show the page in the web browser."""

    settings = tyro.cli(
        Report,
        args=argv,
        prog="forestgaps-jax report",
        description="Write what is known of a run as one HTML page that needs no other file and no network: "
        "its scores beside those of what needs no training, maps of test tiles, the worst tiles, gap sizes, "
        "calibration, curves and settings. What a run lacks is left out, and told on the page.",
    )
    from forestgaps_jax.report import write_report

    page = write_report(settings.run_folder, settings.out, settings.checkpoint)
    print(f"{page}  {page.stat().st_size / 1e6:.2f} MB")
    if settings.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def gaps(argv: list[str]) -> None:
    """Make polygons of a gap map."""
    import tyro

    @dataclass
    class Gaps:
        raster: tyro.conf.Positional[Path]
        """Gap mask as forestgaps-jax predict writes it: a band for each height threshold. Or a canopy height
        model, with --from-chm."""
        threshold: tuple[float, ...] = ()
        """Heights in metres; a place is gap where the canopy is lower. Left out: all that the mask has. A
        canopy height model needs them."""
        from_chm: bool = False
        """The raster is a canopy height model (metres)."""
        inclusive: bool = False
        """With --from-chm: a place as high as the threshold is gap too, as in ForestGapR."""
        chm: Path | None = None
        """Canopy height model on the grid of the mask: adds the heights inside each gap to its row. Not with
        --from-chm, where they are there anyway."""
        min_area: float = 1.0
        """Least size of a gap (m2). Smaller ones are often noise; the power law is fitted from here on."""
        max_area: float = float("inf")
        """Greatest size of a gap (m2). Larger ones are often fields, water or roads: 10000 is usual."""
        out: Path | None = None
        """GeoPackage to write, with a .csv, .json and .png of the same name. Left out: MAP_gaps.gpkg, beside
        the map."""
        overwrite: bool = False
        """Replace files that are there."""

    settings = vars(
        tyro.cli(
            Gaps,
            args=argv,
            prog="forestgaps-jax gaps",
            description="Gaps as objects: pixels that touch by a side or a corner are one gap. Writes a "
            "polygon for each, with its area, perimeter and heights, and prints a summary for each "
            "threshold. The raster is in memory whole: 20,000 x 20,000 pixels need some 4 GB, with heights "
            "5 to 15.",
        )
    )
    raster, thresholds = settings.pop("raster"), settings.pop("threshold")
    out = settings.pop("out") or raster.with_name(f"{raster.stem}_gaps.gpkg")
    from forestgaps_jax.inference import format_gap_table, survey_gaps

    print(format_gap_table(survey_gaps(raster, out, thresholds=thresholds, **settings)))
    print(f"\npolygons: {out}    (a layer for each threshold; opens in QGIS)")
    print(f"beside:   {out.stem}.csv, {out.stem}.json, {out.stem}.png")
