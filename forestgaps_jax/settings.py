"""Every setting of a run: its type, its default, its meaning."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from forestgaps_jax.fields import Rule

PositiveInt = Annotated[int, Rule("1 or more", lambda v: v >= 1)]
Count = Annotated[int, Rule("0 or more", lambda v: v >= 0)]
Positive = Annotated[float, Rule("above 0", lambda v: 0 < v < math.inf)]
NotNegative = Annotated[float, Rule("0 or more", lambda v: 0 <= v < math.inf)]
Fraction = Annotated[float, Rule("from 0 to 1", lambda v: 0 <= v <= 1)]
Share = Annotated[float, Rule("above 0, up to 1", lambda v: 0 < v <= 1)]
Rate = Annotated[float, Rule("from 0 to below 1", lambda v: 0 <= v < 1)]
FolderName = Annotated[str, Rule("a plain folder name", lambda v: Path(v).name == v and v != "..")]
Metres = Annotated[float, Rule("from 0.1 to 5 m", lambda v: 0.1 <= v <= 5)]
TreeHeight = Annotated[float, Rule("from 8 to 90 m", lambda v: 8 <= v <= 90)]
Slope = Annotated[float, Rule("from 0 to 45 degrees", lambda v: 0 <= v <= 45)]
Tilt = Annotated[float, Rule("from 0 to 60 degrees", lambda v: 0 <= v <= 60)]
Window = Annotated[int, Rule("odd, 3 or more", lambda v: v >= 3 and v % 2 == 1)]
Zoom = Annotated[float, Rule("from 0.1 to 1", lambda v: 0.1 <= v <= 1)]


@dataclass(slots=True)
class Settings:
    """The fields of `Config`, in the order of a run."""

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
    thresholds_per_tile: PositiveInt = 1
    """Thresholds that a tile is asked for in one training step. unet_ground and unet_distribution compute
    them in one pass; for other networks the batch is that many times as large."""
    monitor_metric: str = "val_iou"
    """What makes a checkpoint the best: val_ or train_ and the name of a metric. Losses and error_rate
    are minimised, everything else is maximised."""
    monitor_mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more of monitor_metric is better; auto: by its name."""

    model_name: str = "unet_film"
    """Network, one of forestgaps_jax.models.MODELS."""
    features: PositiveInt = 32
    """Channels of the first level; each level down doubles them."""
    depth: PositiveInt = 4
    """Times that the network halves the tile; the tile size must be a multiple of 2^depth (of 4 * 2^depth for
    unet_ground)."""
    norm: Literal["batch", "group", "adaptive"] = "batch"
    """Normalisation: BatchNorm, GroupNorm, or adaptive: BatchNorm for a batch_size of 16 or more, else
    GroupNorm."""
    batch_norm_parts: PositiveInt = 1
    """Equal parts of each batch whose statistics BatchNorm takes apart (ghost batch normalization). 1: those
    of the whole batch, over all devices. As many as there are devices: each takes its own, and none waits."""
    dropout: Rate = 0.0
    """Share of the features dropped at the bottom of the network."""
    use_droppath: bool = False
    """Stochastic depth: in training, samples skip residual branches at random; deeper blocks skip more."""
    droppath_start_prob: Fraction = 0.0
    """Chance to skip the deepest branch at the start of the training."""
    droppath_final_prob: Fraction = 0.2
    """Chance to skip the deepest branch from 80% of the training on."""
    droppath_strategy: Literal["linear", "cosine", "exp"] = "linear"
    """How the chance goes from droppath_start_prob to droppath_final_prob."""
    spectral_norm: bool = False
    """Divide each convolution's kernel by its largest singular value."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; weights, statistics and losses are always float32. On a CPU bfloat16 is
    faster where that has units for it: Intel's AMX, on Linux."""
    remat: bool = False
    """Compute features again in the backward pass instead of keeping them: slower, in less memory. For GPU
    and TPU: on a CPU activations are computed again in any case, and the rest saves little."""
    height_scale: Positive = 10.0
    """Metres that count as 1 inside the network, for heights and thresholds alike."""
    detrend: bool = True
    """Take each tile's least-squares plane off, so that no tilt of the ground reaches the network."""
    opening_windows: tuple[Window, ...] = (5, 9, 17, 33, 65)
    """Sides (px) of grey openings: the network also sees the surface above each of them. Those of unet_ground
    are made of whole cells of 4 px."""

    sites: tuple[str, ...] = ()
    """DSM and CHM pairs beside dsm and chm: folders, globs (quoted in a shell), or manifests. Names tell who
    belongs together: A_DSM.tif and A_CHM.tif, or dsm/A.tif and chm/A.tif. A manifest is a CSV with the header
    dsm,chm[,name][,weight], or a JSON list of objects with these keys; paths are relative to it. A run's
    config.toml has the pairs that were found in dsm and chm instead."""
    dsm: tuple[str, ...] = ()
    """Surface rasters (GeoTIFF, metres), one a site. Empty, as sites: virtual forests are made."""
    chm: tuple[str, ...] = ()
    """Canopy height rasters (GeoTIFF, metres), one for each DSM, in the same order."""
    site_names: tuple[str, ...] = ()
    """How tables and errors call each of dsm, in its order; empty, or one that is empty: by its file name."""
    chm_only: tuple[str, ...] = ()
    """Canopy height rasters without a surface: each is put on virtual terrain of a virtual_slope."""
    site_weights: tuple[NotNegative, ...] = ()
    """How often tiles of each raster train, relative to each other: one weight for each of dsm (and of
    sites), then of chm_only. Empty: every tile once an epoch, or by their number where there is a
    virtual_share."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Whether tiles are read from disk while training goes on (always), or rasters are held on the devices
    (never); auto: streamed where they would take more than memory_share. A stream needs grain, and pairs
    that lie on one grid each; it knows no chm_only, virtual_share or min_valid_fraction."""
    memory_share: Share = 0.25
    """Share of the devices' memory, and of the machine's, that rasters may take before stream = auto streams
    them; they take 8 bytes a pixel, and up to three times as many on the machine while they are loaded."""
    shard_rasters: Literal["auto", "always", "never"] = "auto"
    """Where several devices train: whether those of a process hold the rasters together, each a part
    (always), or each device holds all of them (never); auto: together where they would take more than
    memory_share of one device's memory. The batches are the same."""
    virtual_share: Rate = 0.0
    """Share of the training tiles that come from virtual forests beside the rasters. 0: virtual forests are
    made only where there is no raster."""
    virtual_sites: PositiveInt = 4
    """Virtual forests to make."""
    virtual_size: PositiveInt = 512
    """Side of a virtual forest, pixels."""
    virtual_resolution: tuple[Metres, Metres] = (1.0, 1.0)
    """Finest and coarsest pixel (m) of the virtual forests; the others lie between, in no order."""
    virtual_slope: tuple[Slope, Slope] = (10.0, 35.0)
    """Mean slope (degrees) of the gentlest and of the steepest virtual forest; the others lie between."""
    virtual_closure: tuple[Fraction, Fraction] = (0.85, 0.85)
    """Share of the ground under crowns in the most open and the most closed virtual forest."""
    virtual_height: tuple[TreeHeight, TreeHeight] = (25.0, 25.0)
    """Height (m) of the dominant trees in the lowest and the tallest virtual forest."""
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
    augment_tilt: Tilt = 0.0
    """Steepest plane (degrees) added to the surface of training tiles, in any direction; 0: none."""
    augment_relief: NotNegative = 0.0
    """Largest standard deviation (m, over 400 m of ground) of fractal relief added to the surface of training
    tiles; 10 m of it have slopes of 25 degrees. 0: none."""
    augment_ridges: NotNegative = 0.0
    """Highest ridge or deepest valley (m) added to the surface of training tiles; 0: none."""
    augment_height: tuple[Positive, Positive] = (1.0, 1.0)
    """Smallest and largest factor on the canopy of training tiles, in surface and truth."""
    augment_resolution: Zoom = 1.0
    """Finest pixel of training tiles, share of the site's own: half of them are zoomed into; 1: none."""
    augment_smoothing: NotNegative = 0.0
    """Widest window (m) in which the surface of training tiles is closed over narrow gaps, as photogrammetry
    does; the truth stays. This and the next four act on half of the tiles, from 0 to what is set; 0: off."""
    augment_blur: NotNegative = 0.0
    """Largest standard deviation (m) of a blur of the surface of training tiles; the truth stays."""
    augment_pits: Fraction = 0.0
    """Largest share of the crown pixels of training tiles whose surface gets a pit; the truth stays."""
    augment_noise: NotNegative = 0.0
    """Largest standard deviation (m) of vertical noise on the surface of training tiles; the truth stays."""
    augment_missing: Rate = 0.0
    """Largest share of the surface of training tiles that is made unknown, in blobs."""

    loss_type: Literal[
        "combined_focal_dice", "focal", "dice", "bce", "combo", "adaptive",
        "mse", "mae", "huber", "combined_regression",
    ] = "combined_focal_dice"  # fmt: skip
    """What is minimised. combo is BCE, Dice and focal loss in fixed shares, adaptive in learnt ones. mse,
    mae, huber and combined_regression are of canopy height and need model_name = unet_regression."""
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
    combo_weights: tuple[NotNegative, NotNegative, NotNegative] = (0.5, 0.3, 0.2)
    """Factors of BCE, Dice and focal loss in combo."""
    use_focal: bool = True
    """Focal loss is a part of adaptive."""
    use_dice: bool = True
    """Dice loss is a part of adaptive."""
    use_bce: bool = False
    """BCE is a part of adaptive."""
    adaptive_weights: tuple[Positive, ...] | None = None
    """Factors that the parts of adaptive (focal, Dice, BCE, those in use) start with. Left out: 1 each."""
    huber_delta: Positive = 1.0
    """Error (m) from which the Huber loss grows linearly."""
    label_smoothing: Rate = 0.0
    """Truth is moved by this share towards one half."""
    use_threshold_weights: bool = False
    """Weigh each training tile by its threshold: the rarer the gaps below it in the training data, the
    more."""
    threshold_weight_adjustment: dict[float, Positive] = field(default_factory=dict)
    """Further factors by threshold (m) on those weights."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer. Weight decay is decoupled (adamw) in all three, and acts on kernels only."""
    learning_rate: Positive = 1e-3
    """Learning rate that the schedule starts from or warms up to; onecycle rises to max_lr instead."""
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
    monitor_gradients: bool = False
    """Record the mean and the largest gradient norm of each epoch, before clipping."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches whose gradients are averaged for one optimizer step."""
    ema_decay: Rate = 0.0
    """Decay of the exponential moving average of the weights, which then is what is scored; 0: none."""
    scheduler_type: Literal[
        "cosine", "cosine_warm", "cosine_restart", "plateau", "warmup_plateau", "step", "onecycle",
        "exponential", "constant",
    ] = "cosine"  # fmt: skip
    """Learning rate over the run; docs/schedules.png draws them all."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end of cosine schedules, and the lowest of plateau."""
    warmup_epochs: NotNegative = 5.0
    """Length of the warmup of cosine_warm and warmup_plateau, epochs."""
    warmup_start_lr: NotNegative = 1e-6
    """Learning rate at the start of the warmup."""
    cycle_epochs: Positive = 30.0
    """Length of the first cycle of cosine_restart, epochs."""
    cycles: PositiveInt = 3
    """Cycles of cosine_restart; min_lr after the last."""
    cycle_mult: Positive = 1.0
    """How much longer each cycle of cosine_restart is than the one before."""
    plateau_mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more of monitor_metric is progress for plateau; auto: by its name."""
    plateau_factor: Annotated[float, Rule("between 0 and 1", lambda v: 0 < v < 1)] = 0.1
    """Factor on the learning rate when monitor_metric makes no progress."""
    plateau_patience: Count = 10
    """Epochs without progress that plateau bears."""
    plateau_threshold: NotNegative = 1e-4
    """Least change of monitor_metric that counts as progress."""
    plateau_threshold_mode: Literal["rel", "abs"] = "rel"
    """Whether plateau_threshold is a share of the best value, or a difference from it."""
    plateau_cooldown: Count = 0
    """Epochs after a reduction in which plateau does not count."""
    step_size: Positive = 30.0
    """Epochs between the reductions of step."""
    step_gamma: Positive = 0.1
    """Factor on the learning rate at each reduction of step."""
    exponential_gamma: Positive = 0.95
    """Factor on the learning rate over each epoch of exponential."""
    max_lr: Positive | None = None
    """Peak of onecycle. Left out: 10 times learning_rate."""
    pct_start: Annotated[float, Rule("between 0 and 1", lambda v: 0 < v < 1)] = 0.3
    """Share of the run in which onecycle rises."""
    anneal_strategy: Literal["cos", "linear"] = "cos"
    """Shape of onecycle's rise and fall."""
    div_factor: Positive = 25.0
    """max_lr over onecycle's first learning rate."""
    final_div_factor: Positive = 1e4
    """onecycle's first learning rate over its last."""

    use_early_stopping: bool = False
    """End when early_stopping_monitor has not improved for early_stopping_patience epochs."""
    early_stopping_monitor: str = "val_loss"
    """Metric that early stopping follows, named like monitor_metric."""
    early_stopping_mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more of it is better; auto: by its name."""
    early_stopping_patience: Count = 10
    """Epochs in a row without improvement after which early stopping ends the training."""
    early_stopping_min_delta: NotNegative = 0.0
    """Least change that counts as improvement."""
    early_stopping_restore_best: bool = False
    """What train returns has the weights of the best epoch instead of the last. Checkpoints are of the epochs
    as they were trained."""
    save_frequency: PositiveInt = 1
    """Epochs between checkpoints."""
    save_minutes: NotNegative = 10.0
    """Minutes after which a checkpoint is written within an epoch too; 0: at the end of epochs only."""
    max_to_keep: PositiveInt = 1
    """Best checkpoints to keep, beside the last two."""
    max_skipped_steps: PositiveInt = 10
    """Steps in a row that may be skipped, because the loss or a gradient is infinite or NaN, before the
    training ends with an error and the batch in the run folder."""
    vis_save_frequency: Count = 5
    """Epochs between figures of validation tiles and scores in the run folder; 0: none."""
    profile_steps: tuple[Count, Count] | None = None
    """First and last training step of a jax.profiler trace in the run folder."""
    gap_scores: bool = True
    """In tests, also score the outlines of gaps, and gaps as objects (found, missed, false)."""
    boundary_tolerance: Count = 2
    """Pixels that a gap's outline may be off."""
    devices: Count = 0
    """Devices of each process that share the batches; 0: all. batch_size is that of all together."""
    fsdp: PositiveInt = 1
    """Neighbouring devices of a process that hold one copy of the large parameters, and of what the optimizer
    has of them, together; 1: each device has its own."""
    use_progress_bar: bool = True
    """Show a progress bar."""
    use_tensorboard: bool = True
    """Write TensorBoard events to the run folder."""
    compilation_cache_dir: str = "auto"
    """Folder that keeps what JAX has compiled for later starts. auto: below the user's cache directory
    (XDG_CACHE_HOME, or ~/.cache); empty: none. One that JAX was given (JAX_COMPILATION_CACHE_DIR) stays."""
    figure_tiles: Count = 4
    """Tiles in figures."""
