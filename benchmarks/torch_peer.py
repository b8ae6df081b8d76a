"""The network ``unet_film`` and its training in PyTorch, as its best users write them.

`FiLMUNet` has the modules of `forestgaps_jax.models.UNet` under the same names, so `copy_weights` gives it
the same weights, and it gives the same logits, losses and gradients to rounding. What is PyTorch's own:
running variances are unbiased (ours are those of the batches themselves, smaller by 1/n of n pixels), and a
pixel without data would spread; nor does a step look for infinite losses and gradients, as ours does.

`benchmarks/peer.py` compares both.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

OPENING_WINDOWS = (5, 9, 17, 33, 65)
EMBEDDING = 64
HEIGHT_SCALE = 10.0
SAME_THRESHOLD = 1e-3


class FullPrecisionConv(nn.Conv2d):
    """A convolution that autocast leaves in float32: of heights, which bfloat16 would round, or to logits."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each normalised and modulated; the second one is a residual branch.

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        entry: the input are heights.
    """

    def __init__(self, channels_in: int, channels: int, entry: bool = False):
        super().__init__()
        conv = FullPrecisionConv if entry else nn.Conv2d
        self.conv1 = conv(channels_in, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, steer: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """Apply the block; ``steer`` gives factor and summand of each convolution's features."""
        x = modulate(self.norm1(self.conv1(x)), *next(steer))
        return x + modulate(self.norm2(self.conv2(x)), *next(steer))


def modulate(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Scale, shift and rectify in one pass over the features and one in place; bfloat16 under autocast."""
    return F.relu(torch.addcmul(shift, x.to(shift.dtype), gain), inplace=True)


class ThresholdEmbedding(nn.Module):
    """A small perceptron from scaled threshold and pixel size to a vector; all pixels are 1 m here."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(2, width)
        self.out = nn.Linear(width, width)

    def forward(self, threshold: Tensor) -> Tensor:
        """Embed scaled thresholds ``[batch]``."""
        told = torch.stack([threshold, torch.zeros_like(threshold)], dim=-1)
        hidden = F.gelu(self.hidden(told), approximate="tanh")
        return F.gelu(self.out(hidden), approximate="tanh")


class FiLM(nn.Module):
    """Factor and summand of the channels of several layers, by one projection of the embedding."""

    def __init__(self, width: int, channels: Sequence[int]):
        super().__init__()
        self.channels = list(channels)
        self.project = nn.Linear(width, 2 * sum(channels))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, embedding: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One pair a layer, ``[batch, channels, 1, 1]``."""
        gamma, beta = self.project(embedding)[:, :, None, None].chunk(2, dim=1)
        gains, shifts = (part.split(self.channels, dim=1) for part in (1.0 + gamma, beta))
        return list(zip(gains, shifts, strict=True))


class FiLMUNet(nn.Module):
    """``create_model("unet_film", features=features, depth=depth)``, in PyTorch.

    Args:
        features: channels of the first level, doubled at each level down.
        depth: how often the tile is halved.
    """

    def __init__(self, features: int = 32, depth: int = 4):
        super().__init__()
        channels = [features * 2**level for level in range(depth + 1)]
        incoming = [1 + len(OPENING_WINDOWS), *channels]
        steered = [c for c in (*channels, *reversed(channels[:-1])) for _ in range(2)]
        self.embed, self.film = ThresholdEmbedding(EMBEDDING), FiLM(EMBEDDING, steered)
        *encoder, self.bottom = (ConvBlock(incoming[i], c, entry=i == 0) for i, c in enumerate(channels))
        self.encoder = nn.ModuleList(encoder)
        self.narrow = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels[:-1])
        self.decoder = nn.ModuleList(ConvBlock(2 * c, c) for c in channels[:-1])
        self.head = FullPrecisionConv(features, 1, 1)
        self.apply(_start)

    def forward(self, dsm: Tensor, threshold: Tensor) -> Tensor:
        """Logits that the canopy is lower than the threshold.

        Args:
            dsm: ``[batch, 1, height, width]`` surface height, metres, all known.
            threshold: ``[batch]`` metres.
        """
        steer = iter(self.film(self.embed(threshold / HEIGHT_SCALE)))
        x, skips = surface_channels(dsm), []
        for block in self.encoder:
            skips.append(block(x, steer))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x, steer)
        for narrow, block in zip(reversed(self.narrow), reversed(self.decoder), strict=True):
            x = block(torch.cat([skips.pop(), double(narrow(x))], dim=1), steer)
        return self.head(x)


def double(x: Tensor) -> Tensor:
    """Bilinear doubling; compiled, a step with interpolate's gradient, scattered sums, takes 1/6 longer."""
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return mix_neighbours(x)


def mix_neighbours(x: Tensor) -> Tensor:
    """Bilinear doubling as sums of shifted images, which fuse with what is around them."""
    for dim in (2, 3):
        size = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)
        pair = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim + 1)
        x = pair.flatten(dim, dim + 1)
    return x


def _start(module: nn.Module) -> None:
    """He's initial weights of convolutions."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def surface_channels(dsm: Tensor) -> Tensor:
    """The scaled surface without its plane, and the surface above its own grey openings."""
    heights = dsm - dsm.amax((2, 3), keepdim=True)
    heights = remove_plane((heights - heights.mean((2, 3), keepdim=True)) / HEIGHT_SCALE)
    return torch.cat([heights, *(heights - opening(heights, side) for side in OPENING_WINDOWS)], dim=1)


def remove_plane(heights: Tensor) -> Tensor:
    """Take off each tile's least-squares plane; the mean is off already."""
    for dim in (2, 3):
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        along = torch.linspace(-1.0, 1.0, heights.shape[dim], device=heights.device).view(shape)
        slope = (heights * along).mean((2, 3), keepdim=True) / along.square().mean()
        heights = heights - slope * along
    return heights


def opening(heights: Tensor, window: int) -> Tensor:
    """Grey opening by a square; windows are cut off at the edge of the tile."""
    lowest = _extreme(heights, window, torch.minimum, math.inf)
    return _extreme(lowest, window, torch.maximum, -math.inf)


def _extreme(x: Tensor, window: int, of: Callable[[Tensor, Tensor], Tensor], outside: float) -> Tensor:
    """Running minimum or maximum along columns and rows; doubling spans is 15 times as fast as max_pool2d."""
    reach = window // 2
    for dim, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        x, span = F.pad(x, padding, value=outside), 1
        while span < window:
            step = min(span, window - span)
            length = x.shape[dim] - step
            x = of(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            span += step
    return x


_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def as_state_dict(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """Arrays of ``unet_film`` (``nnx.to_pure_dict``) or their gradients, as `FiLMUNet` names them."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= as_state_dict(value, f"{prefix}{name}.")
            continue
        array = np.array(value)
        # Kernels are [..., in, out] there and [out, in, ...] here.
        array = np.moveaxis(array, (-1, -2), (0, 1)) if name == "kernel" else array
        found[prefix + _NAMES.get(name, name)] = torch.from_numpy(np.ascontiguousarray(array))
    return found


def copy_weights(jax_model: Any, peer: FiLMUNet) -> None:
    """Give a peer the weights and running statistics of a ``unet_film`` of its size.

    Raises:
        RuntimeError: the networks differ.
    """
    from flax import nnx

    arrays = as_state_dict(nnx.to_pure_dict(nnx.state(jax_model)))
    counters = {k: v for k, v in peer.state_dict().items() if k.endswith("num_batches_tracked")}
    peer.load_state_dict(arrays | counters)


def focal_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Half a focal loss (gamma 2, both classes weighed by a half) and half a Dice loss of the batch."""
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    focal = 0.5 * ((1.0 - torch.exp(-entropy)).square() * entropy).mean()
    probability = torch.sigmoid(logits)
    either = probability.sum() + mask.sum()
    dice = (either - 2.0 * (probability * mask).sum()) / (either + 1e-6)
    return 0.5 * focal + 0.5 * dice


def confusion(logits: Tensor, mask: Tensor) -> Tensor:
    """True and false gap, missed gap and true rest of each sample ``[batch, 4]``, exact."""
    predicted, truth = logits > 0, mask > 0.5
    cells = (predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth)
    return torch.stack([cell.sum((1, 2, 3)) for cell in cells], dim=1)


def threshold_index(threshold: Tensor, listed: Tensor) -> Tensor:
    """Place of each threshold in the list; its length for one that is not listed."""
    match = (threshold[:, None] - listed).abs() < SAME_THRESHOLD
    return torch.where(match.any(1), match.int().argmax(1), len(listed))


def make_optimizer(network: nn.Module, lr: float = 1e-3, decay: float = 1e-4, fused: bool = False) -> Any:
    """AdamW that decays kernels only."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=fused or None)


@dataclass(frozen=True)
class Variant:
    """A way of running the peer.

    Attributes:
        tuned: channels last, and the fused AdamW.
        mode: of ``torch.compile``; None runs eagerly.
        bf16: bfloat16 by autocast.
        habits: every metric of every sample goes to the host in every step.
    """

    tuned: bool = False
    mode: str | None = None
    bf16: bool = False
    habits: bool = False

    def prepare(self, network: FiLMUNet, device: torch.device) -> FiLMUNet:
        """Put a network on the device, as this variant lays it out in memory."""
        layout = torch.channels_last if self.tuned else torch.contiguous_format
        return network.to(device=device, memory_format=layout)  # type: ignore[call-overload]

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile, or not."""
        return function if self.mode is None else torch.compile(function, mode=self.mode)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """What the forward pass runs in."""
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()


_FLOAT32 = {
    "eager": Variant(),
    "channels_last": Variant(tuned=True),
    "compile": Variant(tuned=True, mode="default"),
    "max-autotune": Variant(tuned=True, mode="max-autotune"),
    "habits": Variant(habits=True),
}
VARIANTS = _FLOAT32 | {f"{name}-bf16": replace(variant, bf16=True) for name, variant in _FLOAT32.items()}
"""By name."""


class Tiles(NamedTuple):
    """A batch: surface and labels ``[batch, 1, height, width]``, and thresholds ``[batch]``."""

    dsm: Tensor
    mask: Tensor
    threshold: Tensor


class Trainer:
    """The inside of a training loop: step, schedule, and an epoch's loss and exact counts on the device.

    Args:
        network: to train.
        variant: how.
        thresholds: listed canopy heights, metres.
        device: where.
        steps: of the whole training, over which the learning rate falls.
    """

    def __init__(
        self,
        network: FiLMUNet,
        variant: Variant,
        thresholds: Sequence[float],
        device: torch.device,
        steps: int = 10_000,
    ):
        self.variant, self.device = variant, device
        self.network = variant.prepare(network, device).train()
        self.optimizer = make_optimizer(self.network, fused=variant.tuned)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps, eta_min=1e-6)
        self.listed = torch.tensor(thresholds, dtype=torch.float32, device=device)
        self.counts = torch.zeros(len(thresholds) + 1, 4, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.forward = variant.compile(self._forward)

    def step(self, batch: Tiles) -> None:
        """Train on a batch; nothing is waited for."""
        with self.variant.autocast(self.device):
            loss, logits, cells, group = self.forward(*batch)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.loss += loss.detach()
        self.counts.index_add_(0, group, cells)
        if self.variant.habits:
            habitual_metrics(logits, batch.mask)

    def _forward(self, dsm: Tensor, mask: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = self.network(dsm, threshold)
        loss, logits = focal_dice_loss(logits, mask), logits.detach()
        return loss, logits, confusion(logits, mask), threshold_index(threshold, self.listed)


def habitual_metrics(logits: Tensor, mask: Tensor) -> list[dict[str, float]]:
    """The metrics of each sample, each brought to the host as soon as it is known."""
    predictions, truths, found = torch.sigmoid(logits) > 0.5, mask > 0.5, []
    for predicted, truth in zip(predictions, truths, strict=True):
        both, either = (predicted & truth).sum(), (predicted | truth).sum()
        positive, gaps = predicted.sum(), truth.sum()
        metrics = {
            "iou": (both / (either + 1e-8)).item(),
            "precision": (both / (positive + 1e-8)).item(),
            "recall": (both / (gaps + 1e-8)).item(),
            "f1": (2 * both / (positive + gaps + 1e-8)).item(),
            "accuracy": (predicted == truth).float().mean().item(),
        }
        found.append(metrics)
    return found


class Predictor:
    """Gap probabilities of batches: the arguments are those of `Trainer`."""

    def __init__(self, network: FiLMUNet, variant: Variant, device: torch.device):
        self.variant, self.device = variant, device
        self.network = variant.prepare(network, device).eval()
        if variant.mode == "max-autotune":
            # Weights become constants: convolutions swallow the normalisation.
            torch._inductor.config.freezing = True  # type: ignore[attr-defined]
        self.forward = variant.compile(self._forward)

    @torch.inference_mode()
    def predict(self, dsm: Tensor, threshold: Tensor) -> Tensor:
        """Probabilities ``[batch, 1, height, width]``, float32."""
        with self.variant.autocast(self.device):
            return self.forward(dsm, threshold)

    def _forward(self, dsm: Tensor, threshold: Tensor) -> Tensor:
        return torch.sigmoid(self.network(dsm, threshold))


class RandomTiles(Dataset):
    """Tiles cut anywhere from rasters, turned and mirrored at random, with a threshold of the list.

    Args:
        rasters: ``(dsm, chm)`` of each site, metres.
        tile: side of a tile, pixels.
        thresholds: to choose from, metres.
        length: tiles that it says to have; each number always gives the same tile.
    """

    def __init__(
        self,
        rasters: Sequence[tuple[np.ndarray, np.ndarray]],
        tile: int,
        thresholds: Sequence[float],
        length: int = 2**40,
    ):
        self.rasters, self.tile, self.thresholds, self.length = rasters, tile, thresholds, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng(index)
        dsm, chm = self.rasters[int(random.integers(len(self.rasters)))]
        row, column = (random.integers(length - self.tile + 1) for length in dsm.shape)
        window = np.s_[row : row + self.tile, column : column + self.tile]
        tiles = np.rot90(np.stack([dsm[window], chm[window]]), int(random.integers(4)), axes=(1, 2))
        tiles = tiles[:, :, :: random.choice((1, -1))]
        threshold = np.float32(random.choice(self.thresholds))
        mask = (tiles[1:] < threshold).astype(np.float32)
        return torch.from_numpy(tiles[:1].copy()), torch.from_numpy(mask), torch.tensor(threshold)


def load_tiles(dataset: RandomTiles, batch: int, workers: int, device: torch.device) -> Iterator[Tiles]:
    """Batches on the device, cut by worker processes ahead of their use."""
    pinned = device.type == "cuda"
    loader = DataLoader(dataset, batch, num_workers=workers, pin_memory=pinned, persistent_workers=True)
    for parts in loader:
        yield Tiles(*(part.to(device, non_blocking=True) for part in parts))
