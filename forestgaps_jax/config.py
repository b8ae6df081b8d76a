"""The settings of a run as one flat object: checked at every assignment, read from and written to TOML."""

import difflib
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from forestgaps_jax.fields import checked, field_docs, shown
from forestgaps_jax.files import write_whole
from forestgaps_jax.settings import Settings

_LOW_RATES = {
    "min_lr": ("cosine", "cosine_warm", "cosine_restart", "plateau", "warmup_plateau"),
    "warmup_start_lr": ("cosine_warm", "warmup_plateau"),
}
"""Settings that may not be above ``learning_rate``, and the schedules that read them."""

_BITS = 31
"""Of the largest whole number on the device."""

_LENGTHS = ("warmup_epochs", "cycle_epochs", "step_size")
"""Settings that become numbers of steps."""

_MOST_CYCLES = 1000

_RANGES = ("virtual_resolution", "virtual_slope", "virtual_closure", "virtual_height", "augment_height")
"""Settings whose first value may not be above the second."""

_ELSEWHERE = {
    "lr": "learning_rate",
    "gamma": "step_gamma, exponential_gamma or focal_gamma",
    **{name: f"plateau_{name}" for name in ("factor", "patience", "threshold_mode", "mode", "cooldown")},
    "threshold": "plateau_threshold; for heights, thresholds",
    "mixed_precision": "precision = 'bfloat16'",
    "gradient_checkpointing": "remat",
    "drop_path_rate": "use_droppath and droppath_final_prob",
    "save_best_only": "save_frequency and max_to_keep",
    "logs_dir": "runs_dir and name",
    "checkpoints_dir": "runs_dir and name",
}
"""What stands here for settings of the original and of other libraries."""


class _Checked(type):
    """Checks and converts settings before the dataclass's own ``__init__`` sees them."""

    if not TYPE_CHECKING:  # type checkers read the dataclass's own signature

        def __call__(cls, *values: Any, **settings: Any) -> "Config":
            _refuse_unknown(settings, TypeError, "Config")
            hints = _hints()
            return super().__call__(*values, **{k: checked(k, v, hints[k]) for k, v in settings.items()})


@dataclass(slots=True)
class Config(Settings, metaclass=_Checked):
    """Settings of a run.

    Assigning an unknown name or a wrong value raises at once:

    >>> config = Config(epochs=3)
    >>> config.epoch = 4
    Traceback (most recent call last):
        ...
    AttributeError: Config has no setting 'epoch'; did you mean 'epochs'?
    >>> config.dropout = 1.5
    Traceback (most recent call last):
        ...
    ValueError: dropout = 1.5: must be from 0 to below 1
    """

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_unknown([name], AttributeError, "Config")
        object.__setattr__(self, name, checked(name, value, _hints()[name]))

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> "Config":
        """Read settings from a TOML file; ``overrides`` win over the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not TOML, a setting that does not exist, or a wrong value; the file is named.
            TypeError: a value of a wrong type; the file is named.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError(f"there is no settings file {path}") from None
        except RecursionError:
            raise ValueError(f"{path} is not valid TOML: lists or tables too deep in each other") from None
        except ValueError as error:  # of TOML, of UTF-8, or of numbers with more digits than Python reads
            raise ValueError(f"{path} is not valid TOML: {error}") from None
        values |= overrides
        _refuse_unknown(values, ValueError, str(path))
        try:
            config = cls(**values)
            config.validate()
        except (ValueError, TypeError) as error:
            raise type(error)(f"{path}: {error}") from None
        return config

    def to_toml(self, path: str | Path) -> None:
        """Write every setting with its meaning as a comment; settings that are None are left out."""
        lines, docs = [], field_docs(Config)
        for name, value in self.to_dict().items():
            if value is not None:
                lines += ["", *(f"# {line}" for line in docs[name].splitlines())]
                lines.append(f"{name} = {_toml(value)}")
        write_whole(path, "\n".join(lines[1:]) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    def validate(self) -> None:
        """Check what concerns several settings at once.

        Raises:
            ValueError: names the settings, their values and what is allowed.
        """
        self._validate_sizes()
        self._validate_sites()
        heights = sorted(self.thresholds)
        if not heights or any(round(b - a, 6) < 0.01 for a, b in pairwise(heights)):
            raise ValueError(
                f"thresholds = {self.thresholds}: must be one or more heights, at least 1 cm apart"
            )
        if self.threshold_range and self.threshold_range[0] >= self.threshold_range[1]:
            raise ValueError(f"threshold_range = {self.threshold_range}: the first must be the lower")
        if not self.threshold_range and self.thresholds_per_tile > len(heights):
            raise ValueError(
                f"thresholds_per_tile = {self.thresholds_per_tile}: there are {len(heights)} thresholds; "
                "list more, or set threshold_range"
            )
        if self.tile_size % (step := 2 ** min(self.depth, _BITS)):
            raise ValueError(
                f"tile_size = {self.tile_size} does not fit depth = {self.depth}: "
                f"must be a multiple of {step}"
            )
        if unlisted := [t for t in self.threshold_weight_adjustment if t not in self.thresholds]:
            raise ValueError(
                f"threshold_weight_adjustment names {unlisted[0]:g} m, which is not in thresholds = {heights}"
            )
        parts = [part for part in ("focal", "dice", "bce") if getattr(self, f"use_{part}")]
        if self.loss_type == "adaptive" and not parts:
            raise ValueError("loss_type = 'adaptive' has no part: set use_focal, use_dice or use_bce")
        weights = parts if self.adaptive_weights is None else self.adaptive_weights
        if self.loss_type == "adaptive" and len(weights) != len(parts):
            raise ValueError(
                f"adaptive_weights = {self.adaptive_weights}, parts in use {parts}: must be one for each"
            )
        if self.loss_type == "adaptive" and not all(1e-3 <= w <= 1e3 for w in self.adaptive_weights or ()):
            raise ValueError(f"adaptive_weights = {self.adaptive_weights}: must be from 0.001 to 1000")
        if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps = {self.profile_steps}: the first must be the lower")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1, to leave blocks for training")
        if self.scheduler_type == "cosine_restart":
            self._validate_cycles()
        if self.scheduler_type == "onecycle":
            self._validate_onecycle()
        for name, readers in _LOW_RATES.items():
            if (rate := getattr(self, name)) > self.learning_rate and self.scheduler_type in readers:
                raise ValueError(
                    f"{name} = {rate} is above learning_rate = {self.learning_rate}, which scheduler_type = "
                    f"{self.scheduler_type!r} does not allow: choose a lower {name}"
                )

    def _validate_sizes(self) -> None:
        """Refuse numbers that the device cannot hold."""
        for name, value in self.to_dict().items():
            bits = 32 if name == "seed" else _BITS
            numbers = value if isinstance(value, tuple) else (value,)
            counts = [number for number in numbers if isinstance(number, int) or name in _LENGTHS]
            if any(number > 2**bits - 1 for number in counts):
                raise ValueError(f"{name} = {shown(value)}: must be below 2^{bits}, as far as jax counts")

    def _validate_cycles(self) -> None:
        begun, end, length = 0, 0.0, self.cycle_epochs
        while begun < self.cycles and end < self.epochs:
            if length >= 2**_BITS or begun == _MOST_CYCLES:
                raise ValueError(
                    f"cycle_epochs = {self.cycle_epochs:g}, cycle_mult = {self.cycle_mult:g}: cycle "
                    f"{begun + 1} would have {length:g} epochs; there can be {_MOST_CYCLES} cycles, each of "
                    f"less than 2^{_BITS} epochs"
                )
            begun, end, length = begun + 1, end + length, length * self.cycle_mult

    def _validate_onecycle(self) -> None:
        peak = 10 * self.learning_rate if self.max_lr is None else self.max_lr
        if not 0 < peak / self.div_factor < math.inf:
            raise ValueError(
                f"max_lr = {peak:g} over div_factor = {self.div_factor:g} is {peak / self.div_factor:g}, and "
                "onecycle starts from it: must be above 0 and finite"
            )

    def _validate_sites(self) -> None:
        if len(self.dsm) != len(self.chm):
            raise ValueError(
                f"{len(self.dsm)} DSM and {len(self.chm)} CHM rasters given: each DSM needs its CHM"
            )
        if self.site_names and not self.sites and len(self.site_names) != len(self.dsm):
            raise ValueError(f"site_names = {self.site_names}: must be one for each of {len(self.dsm)} dsm")
        rasters = len(self.dsm) + len(self.chm_only)
        # How many sites names is known where they are looked for.
        if self.site_weights and rasters and not self.sites and len(self.site_weights) != rasters:
            raise ValueError(
                f"site_weights = {self.site_weights}: must be one for each of {len(self.dsm)} dsm and "
                f"{len(self.chm_only)} chm_only"
            )
        if self.site_weights and not any(self.site_weights):
            raise ValueError(f"site_weights = {self.site_weights}: one must be above 0")
        for name in _RANGES:
            if (ends := getattr(self, name))[0] > ends[1]:
                raise ValueError(f"{name} = {ends}: the first must not be above the second")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    # JSON's lists, numbers and strings are TOML's, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Config, include_extras=True)


def _refuse_unknown(names: Iterable[str], error: type[Exception], owner: str) -> None:
    for name in names:
        if name not in _hints():
            raise error(f"{owner} has no setting {shown(name)}; {_hint(name)}")


def _hint(name: str) -> str:
    if name.lower() in _ELSEWHERE:
        return f"here that is {_ELSEWHERE[name.lower()]}"
    close = difflib.get_close_matches(name, _hints(), n=1)
    return f"did you mean {close[0]!r}?" if close else "forestgaps-jax train --help lists all"
