"""What networks are built of: convolution, normalisation, stochastic depth, initial weights."""

from forestgaps_jax.layers.conv import Conv, Layers
from forestgaps_jax.layers.drop_path import DropPath, drop_path
from forestgaps_jax.layers.initializers import he_normal
from forestgaps_jax.layers.norm import AdaptiveNorm, Norm, choose_norm

__all__ = ["AdaptiveNorm", "Conv", "DropPath", "Layers", "Norm", "choose_norm", "drop_path", "he_normal"]
