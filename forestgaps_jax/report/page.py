"""The page of a run, put together and written."""

import os
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from forestgaps_jax.report import formats
from forestgaps_jax.report.about import about, what_was_trained
from forestgaps_jax.report.evidence import Evidence, gather
from forestgaps_jax.report.maps import tile_rows
from forestgaps_jax.report.record import RunRecord, read_record
from forestgaps_jax.report.scores import calibration, confusion, curves, score_tables
from forestgaps_jax.report.sizes import gap_sizes
from forestgaps_jax.report.verdict import judge

_GENERATOR = "forestgaps-jax report"
_TEMPLATES = Path(__file__).parent / "templates"


class Section(NamedTuple):
    """A part of the page: the template of its name, and what that fills in."""

    name: str
    title: str
    content: Any = None


def write_report(
    folder: str | Path, out: str | Path | None = None, checkpoint: Literal["best", "last"] = "best"
) -> Path:
    """Write what is known of a run as one HTML page that loads nothing else.

    What the folder lacks (test tiles, scores, epochs, the rasters that it was trained on) is left out and
    told on the page.

    Args:
        folder: the run folder.
        out: the file; None for ``report.html`` in the run folder. An earlier report is written over, and
            nothing else.
        checkpoint: whose answers are shown on the test tiles.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the folder is no run folder, or that of ``out`` does not exist.
        FileExistsError: ``out`` is something else than a report.
        ValueError: the run's settings cannot be read.
    """
    record = read_record(folder)
    target = record.folder / "report.html" if out is None else Path(out)
    _check_target(target)
    page = render(record, gather(record, checkpoint), checkpoint)
    _write_whole(target, page)
    return target


def render(record: RunRecord, evidence: Evidence, checkpoint: str = "best") -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(formats, name) for name in ("number", "percent", "count", "height", "duration")
    }
    sections = list(_sections(record, evidence))
    return environment.get_template("page.html").render(
        generator=f"{_GENERATOR} {version('forestgaps-jax')}",
        name=record.config.name or record.folder.name,
        what=what_was_trained(record),
        record=record,
        config=record.config,
        checkpoint=checkpoint,
        virtual=not record.config.dsm,
        test_tiles=len(evidence.split.test) if evidence.split else None,
        verdict=judge(evidence.scores, evidence.examination),
        missing=[*record.missing, *evidence.missing],
        sections=sections,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _sections(record: RunRecord, evidence: Evidence) -> Iterator[Section]:
    if evidence.scores is not None:
        yield Section("scores", "Scores", score_tables(evidence.scores))
    if evidence.spread:
        yield Section("maps", "Maps", tile_rows(evidence, evidence.spread))
    if evidence.worst:
        yield Section("worst", "Worst tiles", tile_rows(evidence, evidence.worst))
    if evidence.examination is not None:
        yield Section("sizes", "Gap sizes", gap_sizes(evidence.examination))
        yield Section("calibration", "Calibration", calibration(evidence.examination))
    if evidence.scores is not None:
        yield Section("confusion", "Confusion", confusion(evidence.scores))
    if record.history is not None:
        yield Section("curves", "Training", curves(record.history))
    yield Section("about", "The run", about(record, evidence))
    yield Section("notes", "How to read this")


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {target.parent} to write {target.name} to: make it first"
        )
    if target.exists() and not (target.is_file() and _is_report(target)):
        raise FileExistsError(f"{target} exists and is no report: give another file with --out")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return f'content="{_GENERATOR}'.encode() in file.read(2000)


def _write_whole(target: Path, text: str) -> None:
    """Write under another name and rename, so that there is never half a page."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
