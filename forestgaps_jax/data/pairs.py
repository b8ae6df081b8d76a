"""Pairs of DSM and CHM files, found by their names in folders and globs, or listed in a manifest."""

import csv
import glob
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from forestgaps_jax.config import Config
from forestgaps_jax.data.geotiff import FilePath

_KIND = re.compile(r"(?<![a-z])(dsm|chm)(?![a-z])", re.IGNORECASE)
"""As a word of its own, or set off by digits, dots or lines."""

_SUFFIXES = (".tif", ".tiff")
_COLUMNS = {"dsm", "chm", "name", "weight"}
_MOST_NAMED = 5  # files in an error
_GLOB = re.compile(r"[*?\[]")


class NamedPair(NamedTuple):
    """A DSM and its CHM.

    Attributes:
        dsm: path of the surface raster.
        chm: path of the canopy height raster.
        name: how tables and errors call it; empty for the DSM's file name.
        weight: how often its tiles train, relative to the others; None where that is not said.
    """

    dsm: Path
    chm: Path
    name: str = ""
    weight: float | None = None


def find_pairs(where: FilePath) -> list[NamedPair]:
    """The DSM and CHM pairs of a folder, a glob or a manifest, in the order of their paths, or as listed.

    - Folder: all ``.tif`` and ``.tiff`` in it and below. A DSM has the word ``dsm`` in its file name and the
      CHM has ``chm`` in its place (``A_DSM.tif``, ``A_CHM.tif``), or the folders that hold them are called so
      (``dsm/A.tif``, ``chm/A.tif``), or both; upper case or lower, but the same in both. What is called
      neither, such as a DTM, is left alone.
    - Glob, with ``*``, ``?``, ``[...]`` or ``**``: the DSMs among what it matches, and the CHM of each, by
      the same names, whether the glob matches it or not.
    - Manifest: CSV with the header ``dsm,chm`` and perhaps ``name`` and ``weight``, or a JSON list of objects
      with these keys. Paths are relative to the manifest's folder.

    Raises:
        FileNotFoundError: there is no such folder or manifest, a glob matches no file, or a manifest names
            one that is missing.
        ValueError: a DSM without its CHM, or the reverse, which are named; no pair at all; or a manifest that
            is not as above.
    """
    path, text = Path(where), str(where)
    if path.is_dir():
        return _paired(_geotiffs(path.rglob("*")), text, len(path.parts))
    if path.is_file() and path.suffix.lower() in (".csv", ".json"):
        return _read_manifest(path)
    if _GLOB.search(text) and not path.exists():
        files = _geotiffs(map(Path, glob.glob(text, recursive=True)))
        if not files:
            raise FileNotFoundError(
                f"{text}: no GeoTIFF (.tif, .tiff) matches; * matches within a folder, ** across folders"
            )
        return _paired(files, text, 0)
    if path.exists():
        raise ValueError(
            f"{text}: must be a folder, a glob, or a manifest that ends in .csv or .json; single rasters are "
            "given as dsm and chm"
        )
    raise FileNotFoundError(f"{text}: there is no such folder or manifest")


def with_pairs(config: Config) -> Config:
    """The settings with what ``sites`` names as ``dsm``, ``chm``, ``site_names`` and ``site_weights``.

    Pairs that ``dsm`` and ``chm`` list come first. A pair without a weight has 1 where others have one.

    Raises:
        FileNotFoundError: as `find_pairs`.
        ValueError: as `find_pairs`; a raster comes twice; or a manifest and ``site_weights`` give weights.
    """
    if not config.sites:
        return config
    pairs = [pair for where in config.sites for pair in find_pairs(where)]
    listed = len(config.dsm)
    dsm, chm = [*config.dsm, *(str(p.dsm) for p in pairs)], [*config.chm, *(str(p.chm) for p in pairs)]
    _refuse_twice(dsm)
    names = [*(config.site_names or [""] * listed), *(pair.name for pair in pairs)]
    weights: Sequence[float] = config.site_weights
    if any(pair.weight is not None for pair in pairs):
        if weights:
            raise ValueError(
                f"site_weights = {weights}, and a manifest in sites has weights: give one of them"
            )
        found = [1.0 if pair.weight is None else pair.weight for pair in pairs]
        weights = [1.0] * listed + found + [1.0] * len(config.chm_only)
    written = {"dsm": dsm, "chm": chm, "site_names": names if any(names) else (), "site_weights": weights}
    expanded = replace(config, sites=(), **written)
    expanded.validate()
    return expanded


def _geotiffs(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in _SUFFIXES and path.is_file())


def _paired(files: Sequence[Path], where: str, root: int) -> list[NamedPair]:
    """Pairs among files whose first ``root`` parts say nothing of their kind."""
    kinds = {file: _kind(file, root) for file in files}
    dsms = [file for file, kind in kinds.items() if kind == "dsm"]
    partners = {dsm: _partner(dsm, root) for dsm in dsms}
    taken = set(partners.values())
    alone = [dsm for dsm, chm in partners.items() if chm is None]
    alone += [file for file, kind in kinds.items() if kind == "chm" and file not in taken]
    if alone:
        raise ValueError(
            f"{where}: without their partner are {_some(alone)}; the CHM of A_DSM.tif is A_CHM.tif beside "
            "it, that of dsm/A.tif is chm/A.tif; move them away, or list the pairs in a manifest"
        )
    if not dsms:
        raise ValueError(
            f"{where}: there is no pair among {len(files)} GeoTIFFs ({_some(files)}): must be called as "
            "A_DSM.tif and A_CHM.tif, or dsm/A.tif and chm/A.tif; or list the pairs in a manifest"
        )
    return [NamedPair(dsm, chm) for dsm, chm in partners.items() if chm is not None]


def _kind(file: Path, root: int) -> str | None:
    """What a file's name says that it is, or else the nearest folder that is called so."""
    if words := _KIND.findall(file.stem):
        return words[-1].lower()
    folders = (part.lower() for part in reversed(file.parts[root:-1]))
    return next((part for part in folders if part in ("dsm", "chm")), None)


def _partner(dsm: Path, root: int) -> Path | None:
    """The CHM of a DSM: called so in its file name, in its nearest folder, or in both."""
    name = _renamed(dsm.stem) + dsm.suffix
    if name != dsm.name and (beside := dsm.with_name(name)).is_file():
        return beside
    parts = list(dsm.parts[:-1])
    for at in reversed(range(root, len(parts))):
        if parts[at].lower() == "dsm":
            parts[at] = _renamed(parts[at])
            there = Path(*parts, name)
            return there if there.is_file() else None
    return None


def _renamed(text: str) -> str:
    """With the last ``dsm`` in it turned to ``chm``, in the same case."""
    *_, last = [None, *_KIND.finditer(text)]
    if last is None:
        return text
    word = "".join("chm"[i].upper() if c.isupper() else "chm"[i] for i, c in enumerate(last[0]))
    return text[: last.start()] + word + text[last.end() :]


def _read_manifest(path: Path) -> list[NamedPair]:
    rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path))
    if not rows:
        raise ValueError(f"{path}: it lists no pair")
    return [_listed_pair(f"{path}, {place}", path.parent, row) for place, row in rows]


def _csv_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True)
            header = [name.strip().lower() for name in next(lines, [])]
            _check_keys(str(path), header, "its header has")
            for values in lines:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise ValueError(
                        f"{path}, line {lines.line_num}: it has {len(values)} values, and the header "
                        f"{len(header)} columns"
                    )
                yield f"line {lines.line_num}", dict(zip(header, map(str.strip, values), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV text in UTF-8: {error}") from None


def _json_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(items, list):
        raise ValueError(f"{path}: it holds a {type(items).__name__}: must be a list of objects")
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise ValueError(f"{path}, item {number}: it is a {type(item).__name__}: must be an object")
        _check_keys(f"{path}, item {number}", list(item), "it has")
        yield f"item {number}", item


def _check_keys(place: str, keys: Sequence[str], says: str) -> None:
    if not {"dsm", "chm"} <= set(keys) <= _COLUMNS or len(set(keys)) != len(keys):
        raise ValueError(f"{place}: {says} {', '.join(keys) or 'nothing'}: must be dsm,chm[,name][,weight]")


def _listed_pair(place: str, folder: Path, row: dict[str, Any]) -> NamedPair:
    for key in ("dsm", "chm", "name"):
        value = row.get(key, "")
        if not isinstance(value, str) or (key != "name" and not value):
            raise ValueError(
                f"{place}: {key} = {value!r}: must be text" + ("" if key == "name" else ", a path")
            )
    paths = folder / row["dsm"], folder / row["chm"]
    for key, file in zip(("dsm", "chm"), paths, strict=True):
        if not file.is_file():
            raise FileNotFoundError(f"{place}: {key} = {row[key]!r}: there is no file {file}")
    return NamedPair(*paths, row.get("name", ""), _weight(place, row.get("weight")))


def _weight(place: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        weight = float(value) if not isinstance(value, bool) else math.nan
    except (ValueError, TypeError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{place}: weight = {value!r}: must be a number, 0 or more")
    return weight


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[Path, str] = {}
    for path in paths:
        if (key := Path(path).resolve()) in seen:
            raise ValueError(f"{path}: sites, or sites and dsm, name it twice: must be once")
        seen[key] = path


def _some(files: Sequence[Path]) -> str:
    named = ", ".join(str(file) for file in files[:_MOST_NAMED])
    return named + (f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else "")
