"""What was trained, on what, with what."""

from typing import Any

import numpy as np

from forestgaps_jax.config import Config
from forestgaps_jax.fields import field_docs
from forestgaps_jax.report.evidence import Evidence
from forestgaps_jax.report.formats import UNDEFINED, count, duration
from forestgaps_jax.report.record import RunRecord
from forestgaps_jax.types import Grid

_PLACES = {"name", "runs_dir", "dsm", "chm"}
"""Settings that say where, not how."""


def about(record: RunRecord, evidence: Evidence) -> dict[str, Any]:
    """Facts of the training, its sites, and its settings other than the defaults."""
    return {
        "facts": _facts(record, evidence),
        "sites": _sites(record, evidence),
        "settings": changed_settings(record.config),
    }


def what_was_trained(record: RunRecord) -> str:
    """The run in a sentence."""
    config, done = record.config, len(record.history["lr"]) if record.history else 0
    sites = len(config.dsm) or config.virtual_sites
    ground = f"{sites} {'site' if config.dsm else 'virtual forest'}{'s' if sites > 1 else ''}"
    size = f" ({count(record.log.weights)} parameters)" if record.log.weights else ""
    began = f", {record.log.started[:10]}" if record.log.started else ""
    return f"{config.model_name}{size}, trained on {ground} for {done} epoch{'s' * (done != 1)}{began}"


def changed_settings(config: Config) -> list[tuple[str, str, str, str]]:
    """Name, value, default and meaning of each setting that is not at its default."""
    now, default, docs = config.to_dict(), Config().to_dict(), field_docs(Config)
    return [
        (name, _told(now[name]), _told(default[name]), docs[name])
        for name in now
        if name not in _PLACES and now[name] != default[name]
    ]


def position(grid: Grid, row: float, column: float) -> str:
    """Where a pixel lies: coordinates, or metres east and south in a place that is nowhere."""
    x, y = grid.left + column * grid.resolution, grid.top - row * grid.resolution
    if grid.crs is None:
        return f"{column * grid.resolution:,.0f} m E, {row * grid.resolution:,.0f} m S"
    return f"x {x:.1f}, y {y:.1f}"


def _facts(record: RunRecord, evidence: Evidence) -> list[tuple[str, str]]:
    config, log, history = record.config, record.log, record.history
    done = len(history["lr"]) if history else 0
    seconds, least = log.seconds, ""
    if seconds is None and history:
        seconds, least = float(np.nansum(history["epoch_times"])), "at least "
    facts = [
        ("Network", config.model_name + (f", {count(log.weights)} parameters" if log.weights else "")),
        ("Thresholds", ", ".join(f"{t:g}" for t in sorted(config.thresholds)) + " m"),
        ("Epochs", f"{done} of {config.epochs}" + (f" ({log.ended})" if "stopped" in log.ended else "")),
        ("Started", log.started or "not recorded"),
        ("Duration", "not recorded" if seconds is None else least + duration(seconds)),
        ("Device", log.device.replace(" x ", " × ") or "not recorded"),
        ("Versions", log.versions.replace("forestgaps_jax", "forestgaps-jax") or "not recorded"),
    ]
    if config.threshold_range:
        low, high = config.threshold_range
        facts[1] = ("Thresholds", f"trained from {low:g} to {high:g} m, scored at {facts[1][1]}")
    if split := evidence.split:
        parts = (("training", split.train), ("validation", split.val), ("test", split.test))
        tiles = ", ".join(f"{len(places):,} {name}" for name, places in parts)
        facts.insert(1, ("Tiles", f"{tiles}; {config.tile_size} × {config.tile_size} px"))
    return facts


def _sites(record: RunRecord, evidence: Evidence) -> list[dict[str, Any]]:
    if evidence.sites is None:
        named = record.config.dsm or [f"virtual-{i}" for i in range(record.config.virtual_sites)]
        return [{"name": name} for name in named]
    rows = []
    for index, site in enumerate(evidence.sites):
        split, known = evidence.split, site.valid
        parts = (split.train, split.val, split.test) if split else ()
        rows.append(
            {
                "name": site.name,
                "size": f"{site.shape[0]:,} × {site.shape[1]:,}",
                "pixel": f"{site.grid.resolution:g} m",
                "area": f"{known.sum() * site.grid.resolution**2 / 1e4:,.1f} ha",
                "canopy": f"{np.quantile(site.chm[known], 0.5):.1f} m" if known.any() else UNDEFINED,
                "crs": _crs_name(site.grid),
                "tiles": [int((places[:, 0] == index).sum()) for places in parts],
            }
        )
    return rows


def _crs_name(grid: Grid) -> str:
    if grid.crs is None:
        return "none (virtual)"
    from rasterio.crs import CRS

    crs = CRS.from_wkt(grid.crs)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else grid.crs.partition('"')[2].partition('"')[0]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(_told, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{_told(key)}: {_told(item)}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
