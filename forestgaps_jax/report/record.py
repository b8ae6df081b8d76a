"""What a run folder holds of its training."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forestgaps_jax.config import Config
from forestgaps_jax.metrics import from_json

_STAMP = r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  "
_START = re.compile(
    _STAMP
    + r"start at step \d+: .*?, (?P<weights>\d+) weights; .* epochs; (?P<device>.+?); (?P<versions>.+)$",
    re.MULTILINE,
)
_END = re.compile(
    _STAMP + r"(?P<reason>end|stopped: .*?); best .*?; (?P<seconds>[\d.]+) s in all$", re.MULTILINE
)


@dataclass(frozen=True)
class Log:
    """What train.log says, in words; empty where it does not.

    Attributes:
        started: date and time.
        ended: why the training ended; empty where it did not come to its end.
        seconds: all the training took; None where that is not known.
        weights: numbers that the network learned.
        device: what it was trained on.
        versions: of the libraries.
    """

    started: str = ""
    ended: str = ""
    seconds: float | None = None
    weights: int | None = None
    device: str = ""
    versions: str = ""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds, besides its checkpoints.

    Attributes:
        folder: the run folder.
        config: the settings as used.
        history: as `train` returns it; None where no epoch was finished.
        scores: metrics by predictor, of the test tiles; None where there are none.
        log: start, end, device and versions.
        missing: what is not there, a sentence each.
    """

    folder: Path
    config: Config
    history: dict[str, Any] | None
    scores: dict[str, Any] | None
    log: Log
    missing: list[str] = field(default_factory=list)


def read_record(folder: str | Path) -> RunRecord:
    """Read what there is; what is not, or cannot be read, is told in ``missing``.

    Raises:
        FileNotFoundError: the folder is no run folder.
        ValueError: its settings cannot be read.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder, it has no config.toml: give one that forestgaps-jax train has made"
        )
    config = Config.from_toml(folder / "config.toml")
    missing: list[str] = []
    history = _read_history(folder, missing)
    log = _read_log(folder / "train.log")
    done = 0 if history is None else len(history["lr"])
    if not log.ended:
        missing.append(
            f"The training did not come to its end: {done} of {config.epochs} epochs are recorded."
        )
    scores = _read_json(folder / "test_metrics.json", missing)
    return RunRecord(folder, config, history, scores, log, missing)


def _read_history(folder: Path, missing: list[str]) -> dict[str, Any] | None:
    """From history.json, which a training writes at its end, or else from the lines of its epochs."""
    history = _read_json(folder / "history.json", missing)
    history = history or _history_of(_read_lines(folder / "metrics.jsonl", missing))
    if not history or not history.get("lr"):
        missing.append("No epoch was finished: there are no curves.")
        return None
    return history


def _history_of(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    history: dict[str, Any] = {
        name: [epoch[name] for epoch in epochs] for name in ("train_metrics", "val_metrics", "lr")
    }
    for phase in ("train", "val"):
        history[f"{phase}_loss"] = [metrics.get("loss") for metrics in history[f"{phase}_metrics"]]
    return from_json(history | {"epoch_times": [epoch["epoch_time"] for epoch in epochs]})


def _read_lines(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The latest line of each epoch; a line that was cut off is told and left out."""
    epochs = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            missing.append(f"A line of {path.name} cannot be read, and is left out.")
        else:
            epochs[entry["epoch"]] = entry
    return [epochs[number] for number in sorted(epochs)]


def _read_json(path: Path, missing: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, Mapping):
        missing.append(f"{path.name} cannot be read: it was cut off, or is not JSON.")
        return None
    return from_json(content)


def _read_log(path: Path) -> Log:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    starts, ends = list(_START.finditer(text)), list(_END.finditer(text))
    if not starts:
        return Log()
    first, last = starts[0], starts[-1]
    ended = ends and ends[-1].start() > last.start()
    return Log(
        started=first["time"],
        ended=ends[-1]["reason"] if ended else "",
        # A training that went on after a break has several parts.
        seconds=sum(float(end["seconds"]) for end in ends) if len(ends) == len(starts) else None,
        weights=int(last["weights"]),
        device=last["device"],
        versions=last["versions"],
    )
