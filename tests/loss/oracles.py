"""The losses of forestgaps (PyTorch) in float64 NumPy, and what the loss tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings

SHAPE = (3, 4, 5, 1)
FEW = settings(max_examples=12, deadline=None)


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


def cross_entropy(x, y):
    return np.logaddexp(0.0, x) - x * y


def focal(x, y, alpha=0.25, gamma=2.0, valid=None, weight=None):
    """``alpha_t (1 - p_t)^gamma BCE``, mean of the valid pixels; each sample's terms times its weight."""
    samples, weight = _cropped(x, y, valid, weight)
    total = 0.0
    for w, (logits, gap) in zip(weight, samples, strict=True):
        alpha_t = 1.0 if alpha is None else np.where(gap == 1, alpha, 1 - alpha)
        p_t = np.where(gap == 1, sigmoid(logits), sigmoid(-logits))
        total += w * (alpha_t * (1 - p_t) ** gamma * cross_entropy(logits, gap)).sum()
    return total / max(sum(gap.size for _, gap in samples), 1)


def dice(x, y, smooth=1e-6, reduction="batch", valid=None, weight=None):
    """``1 - (2 sum(p y) + s) / (sum p + sum y + s)``, of the weighted sums or of each image."""
    samples, weight = _cropped(x, y, valid, weight)
    both = np.array([(sigmoid(logits) * gap).sum() for logits, gap in samples])
    either = np.array([(sigmoid(logits) + gap).sum() for logits, gap in samples])
    if reduction == "batch":
        return 1 - (2 * (weight * both).sum() + smooth) / ((weight * either).sum() + smooth)
    counted = np.array([gap.size > 0 for _, gap in samples])
    losses = 1 - (2 * both + smooth) / (either + smooth)
    return (weight * losses)[counted].sum() / max(counted.sum(), 1)


def combined(x, y, alpha=0.5, gamma=2.0, focal_alpha=0.5, smooth=1e-6, reduction="batch", **masks):
    return alpha * focal(x, y, focal_alpha, gamma, **masks) + (1 - alpha) * dice(
        x, y, smooth, reduction, **masks
    )


def _cropped(x, y, valid, weight):
    """Logits and targets of each sample's valid pixels, and the weights."""
    keep = np.ones(np.shape(x), bool) if valid is None else np.asarray(valid)
    samples = [
        (np.asarray(logits, np.float64)[k], np.asarray(gap, np.float64)[k])
        for logits, gap, k in zip(x, y, keep, strict=True)
    ]
    return samples, np.ones(len(samples)) if weight is None else np.asarray(weight, np.float64)


def case(seed=0, spread=3.0):
    """Logits and 0/1 targets of `SHAPE`, float32."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, SHAPE).astype(np.float32)
    return logits, (rng.random(SHAPE) < 0.4).astype(np.float32)


def masked_case(seed, share=0.6):
    """The same with valid pixels, NaN elsewhere, and sample weights."""
    rng = np.random.default_rng(seed)
    logits, targets = case(seed)
    valid = rng.random(SHAPE) < share
    weight = rng.uniform(0.2, 3.0, SHAPE[0]).astype(np.float32)
    return np.where(valid, logits, np.nan), np.where(valid, targets, np.nan), valid, weight


def finite_differences(function, x, step=1e-4):
    """Central differences of a float64 function, entry by entry."""
    x = np.asarray(x, np.float64)
    slopes = np.empty(x.size)
    for i in range(x.size):
        shift = np.zeros(x.size)
        shift[i] = step
        shift = shift.reshape(x.shape)
        slopes[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return slopes.reshape(x.shape)


def run(loss, logits, targets, valid=None, weight=None):
    """Value and gradient as NumPy, from NumPy; not compiled, since each loss would be anew."""
    logits, targets, valid, weight = (
        None if a is None else jnp.asarray(a) for a in (logits, targets, valid, weight)
    )
    value, slope = jax.value_and_grad(lambda x: loss(x, targets, valid=valid, sample_weight=weight))(logits)
    return float(value), np.asarray(slope, np.float64)
