"""Every setting of a run: one flat, typed, documented dataclass, read from and written to TOML."""

import difflib
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from forestgaps_jax.fields import Rule, checked, field_docs

PositiveInt = Annotated[int, Rule("1 or more", lambda v: v >= 1)]
Count = Annotated[int, Rule("0 or more", lambda v: v >= 0)]
Positive = Annotated[float, Rule("above 0", lambda v: 0 < v < math.inf)]
NotNegative = Annotated[float, Rule("0 or more", lambda v: 0 <= v < math.inf)]
Fraction = Annotated[float, Rule("from 0 to 1", lambda v: 0 <= v <= 1)]
Rate = Annotated[float, Rule("from 0 to below 1", lambda v: 0 <= v < 1)]
FolderName = Annotated[str, Rule("a plain folder name", lambda v: Path(v).name == v and v != "..")]
Slope = Annotated[float, Rule("from 0 to 45 degrees", lambda v: 0 <= v <= 45)]


class _Checked(type):
    """Checks and converts settings before the dataclass's own ``__init__`` sees them."""

    if not TYPE_CHECKING:  # type checkers read the dataclass's own signature

        def __call__(cls, *values: Any, **settings: Any) -> "Config":
            _refuse_unknown(settings, TypeError, "Config")
            hints = _hints()
            return super().__call__(*values, **{k: checked(k, v, hints[k]) for k, v in settings.items()})


@dataclass(slots=True)
class Config(metaclass=_Checked):
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

    name: FolderName = ""
    """Name of the run; its folder is runs_dir/name. Empty: nothing is written to disk."""
    runs_dir: str = "runs"
    """Folder that holds the run folders."""
    seed: Count = 0
    """Seed of everything random: weights, order of the tiles, augmentation, split, virtual forests."""
    epochs: PositiveInt = 100
    """Passes over the training tiles."""
    batch_size: PositiveInt = 8
    """Tiles in a training step."""
    thresholds: tuple[Positive, ...] = (5.0, 10.0, 15.0, 20.0)
    """Canopy heights (m) below which a pixel is gap: what is trained, and scored one by one."""
    threshold_range: tuple[Positive, Positive] | None = None
    """Train on thresholds drawn evenly between these two (m) instead of on the list."""
    monitor_metric: str = "val_iou"
    """What makes a checkpoint the best: val_ or train_ and the name of a metric. Losses and error_rate
    are minimised, everything else is maximised."""

    model_name: str = "unet_film"
    """Network, one of forestgaps_jax.models.MODELS."""
    features: PositiveInt = 32
    """Channels of the first level; each level down doubles them."""
    depth: PositiveInt = 4
    """Times that the network halves the tile; the tile size must be a multiple of 2^depth."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation: BatchNorm, or GroupNorm for small batches."""
    dropout: Rate = 0.0
    """Share of the features dropped at the bottom of the network."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth: chance to skip a residual branch in the deepest block; shallower blocks skip less."""
    height_scale: Positive = 10.0
    """Metres that count as 1 inside the network, for heights and thresholds alike."""

    dsm: tuple[str, ...] = ()
    """Surface rasters (GeoTIFF, metres), one a site. Empty: virtual forests are made."""
    chm: tuple[str, ...] = ()
    """Canopy height rasters (GeoTIFF, metres), one for each DSM, in the same order."""
    virtual_sites: PositiveInt = 4
    """Virtual forests to make when there is no raster."""
    virtual_size: PositiveInt = 512
    """Side of a virtual forest, pixels."""
    virtual_resolution: Positive = 1.0
    """Pixel of a virtual forest, metres."""
    virtual_slope: tuple[Slope, Slope] = (10.0, 35.0)
    """Mean slope (degrees) of the gentlest and of the steepest virtual forest; the others lie between."""
    tile_size: PositiveInt = 128
    """Side of a tile, pixels."""
    tile_overlap: Rate = 0.5
    """Share of a training tile that the next one repeats. Validation and test tiles never overlap."""
    min_valid_fraction: Fraction = 0.5
    """Tiles with fewer valid pixels than this share are left out."""
    block_size: NotNegative = 0.0
    """Side (m) of the square blocks that are dealt to training, validation and test; 0: two tiles."""
    split_buffer: NotNegative = 10.0
    """Width (m) of the strip around validation and test blocks from which nothing is trained."""
    val_fraction: Rate = 0.15
    """Share of the blocks for validation."""
    test_fraction: Rate = 0.15
    """Share of the blocks for the final test."""
    augment: bool = True
    """Turn and mirror training tiles at random (the 8 symmetries of the square)."""

    loss_type: Literal["combined_focal_dice", "focal", "dice", "bce"] = "combined_focal_dice"
    """What is minimised."""
    loss_alpha: Fraction = 0.5
    """Share of the focal loss in combined_focal_dice; the rest is Dice."""
    focal_alpha: Fraction | None = None
    """Weight of gap pixels in the focal loss, 1 - focal_alpha that of the others.
    Left out: 0.5 in combined_focal_dice, 0.25 in focal."""
    focal_gamma: NotNegative = 2.0
    """How strongly the focal loss turns to hard pixels; 0 is cross-entropy."""
    dice_smooth: Positive = 1e-6
    """Pixels added to both sides of the Dice ratio."""
    dice_reduction: Literal["batch", "image"] = "batch"
    """Dice of all the batch's pixels together, or the mean of each tile's own."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer. Weight decay is decoupled (adamw) in all three, and acts on kernels only."""
    learning_rate: Positive = 1e-3
    """Highest learning rate of the schedule."""
    weight_decay: NotNegative = 1e-4
    """Decoupled weight decay."""
    adam_betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Decay of Adam's first and second moment."""
    momentum: Rate = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov momentum in sgd."""
    use_gradient_clipping: bool = False
    """Clip gradients at clip_value."""
    clip_value: Positive = 1.0
    """Largest global norm, or largest absolute entry, of the gradients."""
    clip_norm: bool = True
    """Clip by global norm; false: clip each entry."""
    scheduler_type: Literal["cosine", "cosine_warm"] = "cosine"
    """Learning rate over the run: cosine annealing to min_lr, or the same after a linear warmup."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end."""
    warmup_epochs: NotNegative = 5.0
    """Length of the warmup of cosine_warm, epochs."""
    warmup_start_lr: NotNegative = 1e-6
    """Learning rate at the start of the warmup."""

    use_progress_bar: bool = True
    """Show a progress bar."""
    use_tensorboard: bool = True
    """Write TensorBoard events to the run folder."""
    figure_tiles: Count = 4
    """Test tiles drawn at the end."""

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
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no settings file {path}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
                # JSON's lists, numbers and strings are TOML's, but for one character.
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{name} = {text}")
        Path(path).write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    def validate(self) -> None:
        """Check what concerns several settings at once.

        Raises:
            ValueError: names the settings, their values and what is allowed.
        """
        if len(self.dsm) != len(self.chm):
            raise ValueError(
                f"{len(self.dsm)} DSM and {len(self.chm)} CHM rasters given: each DSM needs its CHM"
            )
        heights = sorted(self.thresholds)
        if not heights or any(b - a < 0.01 for a, b in pairwise(heights)):
            raise ValueError(
                f"thresholds = {self.thresholds}: must be one or more heights, at least 1 cm apart"
            )
        if self.threshold_range and self.threshold_range[0] >= self.threshold_range[1]:
            raise ValueError(f"threshold_range = {self.threshold_range}: the first must be the lower")
        if self.tile_size % 2**self.depth:
            raise ValueError(
                f"tile_size = {self.tile_size} does not fit depth = {self.depth}: "
                f"must be a multiple of {2**self.depth}"
            )
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1, to leave blocks for training")
        if self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr = {self.min_lr} is above learning_rate = {self.learning_rate}: must not be"
            )


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Config, include_extras=True)


def _refuse_unknown(names: Iterable[str], error: type[Exception], owner: str) -> None:
    for name in names:
        if name not in _hints():
            close = difflib.get_close_matches(name, _hints(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "forestgaps-jax train --help lists all"
            raise error(f"{owner} has no setting {name!r}; {hint}")
