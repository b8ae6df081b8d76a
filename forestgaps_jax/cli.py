"""The command line: ``forestgaps-jax train | evaluate | predict | report | gaps | replay | info``."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from forestgaps_jax.config import Config

_USAGE = """usage: forestgaps-jax COMMAND ...

  train [CONFIG.toml] [--setting value ...]   train a gap model; see configs/ for examples
  evaluate RUN_FOLDER [--setting value ...]   score a run again, on its test tiles or on other rasters
  predict RUN_FOLDER DSM.tif [--out maps]     gap maps of a whole raster, as GeoTIFFs, and a picture
  report RUN_FOLDER                           a run as one HTML page: scores, maps, worst tiles
  gaps MAP.tif [--min-area 5 ...]             gaps as polygons (GeoPackage), a table and statistics
  replay RUN_FOLDER                           look at the batch in which a training has diverged
  info                                        versions and devices

forestgaps-jax COMMAND --help lists the settings of a command, with defaults and meanings."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status, 130 after Ctrl-C; SIGTERM exits with 143."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {"train": _train, "evaluate": _evaluate, "predict": _predict}
    commands |= {"report": _report, "gaps": _gaps, "info": _info, "replay": _replay}
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    if command not in commands:
        print(f"forestgaps-jax: there is no command {command!r}\n\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        with _terminable():
            commands[command](rest)
    except KeyboardInterrupt as stop:
        if not str(stop):  # a training has told already
            print(f"\nforestgaps-jax {command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"forestgaps-jax {command}: {error}: pip install {error.name}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"forestgaps-jax {command}: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does; a training takes both itself."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) in (signal.SIG_IGN, None):
        yield
        return

    def end(number: int, frame: Any) -> None:
        print("\nforestgaps-jax: terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _train(argv: list[str]) -> None:
    import tyro

    file, rest = _take(argv, lambda word: word.endswith(".toml"))
    default = Config.from_toml(file) if file else Config()
    if file and not default.name:
        default = replace(default, name=Path(file).stem)

    @dataclass
    class Training:
        config: Annotated[Config, tyro.conf.arg(name="")]
        resume: Literal["auto", "never"] = "auto"
        """auto: go on with the latest run of this name and these settings, from its newest checkpoint; one
        that is finished is scored again. never: begin a new run, in a folder of its own."""

    settings = tyro.cli(
        Training,
        args=rest,
        default=Training(default),
        prog=f"forestgaps-jax train {file or '[CONFIG.toml]'}",
        description="Train a gap model. Settings are read from the TOML file, then from the command line. "
        "A training that was stopped or killed goes on when the same command is given again.",
    )
    settings.config.validate()
    from forestgaps_jax.experiment import run_training

    folder, _ = run_training(settings.config, settings.resume)
    quoted = shlex.quote(str(folder))
    print(f"\nrun folder: {folder}")
    print(f"figures:    {folder}/figures")
    print(f"curves:     tensorboard --logdir {quoted}    (pip install tensorboard)")
    print(f"one page:   forestgaps-jax report {quoted}")
    print(f"a map:      forestgaps-jax predict {quoted} DSM.tif")
    print(f"once more:  forestgaps-jax evaluate {quoted}")


def _evaluate(argv: list[str]) -> None:
    import tyro

    folder, rest = _take(argv, lambda word: (Path(word) / "config.toml").is_file())
    if folder is None and not {"-h", "--help"} & set(argv):
        raise ValueError(f"no run folder (with a config.toml) among the words: {' '.join(argv)}")

    @dataclass
    class Evaluation:
        config: Annotated[Config, tyro.conf.arg(name="")]
        checkpoint: Literal["best", "last"] = "best"
        """Which checkpoint to score."""

    default = Evaluation(Config.from_toml(Path(folder) / "config.toml") if folder else Config())
    settings = tyro.cli(
        Evaluation,
        args=rest,
        default=default,
        prog=f"forestgaps-jax evaluate {folder or 'RUN_FOLDER'}",
        description="Score a run's checkpoint. Name other rasters with --dsm and --chm to score those.",
    )
    assert folder is not None  # help has ended the program by now
    from forestgaps_jax.experiment import run_evaluation

    run_evaluation(folder, settings.config, settings.checkpoint)


def _predict(argv: list[str]) -> None:
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


def _report(argv: list[str]) -> None:
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


def _gaps(argv: list[str]) -> None:
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


def _replay(argv: list[str]) -> None:
    import tyro

    @dataclass
    class Replay:
        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_FOLDER")]
        """Folder of a run that has diverged, or its diverged_step_N."""

    settings = tyro.cli(
        Replay,
        args=argv,
        prog="forestgaps-jax replay",
        description="Take the step in which a training has diverged once more, and say what it read, and "
        "where weights, outputs and gradients are infinite or NaN.",
    )
    from forestgaps_jax.replay import format_replay, replay

    print(format_replay(replay(settings.folder)))


def _info(argv: list[str]) -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import jax

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in (
        "forestgaps-jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "rasterio",
    ):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package}: not installed")
    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")


def _take(argv: list[str], wanted) -> tuple[str | None, list[str]]:
    """The first word that is wanted, and the others."""
    position = next((i for i, word in enumerate(argv) if wanted(word)), None)
    if position is None:
        return None, argv
    return argv[position], argv[:position] + argv[position + 1 :]
