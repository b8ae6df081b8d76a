"""A network in a few lines: its size, its cost, its settings."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from forestgaps_jax.layers.norm import BATCH_OF_BATCH_NORM, choose_norm
from forestgaps_jax.models.network import Network


def parameter_count(model: nnx.Module) -> int:
    """How many numbers training learns.

    >>> parameter_count(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    8
    """
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def model_summary(model: nnx.Module, shape: tuple[int, int, int, int] = (1, 128, 128, 1)) -> str:
    """A table of a network's parts, size, cost and settings; nothing is computed or compiled.

    Args:
        model: called as ``model(dsm, threshold)``, or as ``model(dsm)`` where it takes only one argument.
        shape: of the input, ``[batch, height, width, 1]``.

    Raises:
        ValueError: the network does not take this shape.

    >>> from forestgaps_jax.models import create_model
    >>> model = create_model("unet", rngs=nnx.Rngs(0), features=4, depth=1, norm="adaptive", batch_size=8)
    >>> print(model_summary(model, (1, 16, 16, 1)))  # doctest: +ELLIPSIS
    UNet
      bottom            896
      decoder           448
      encoder           376
      head              5
      narrow            36
      total             1,761 parameters, 0.01 MB
      input             1 x 16 x 16 x 1
      output            1 x 16 x 16 x 1 float32
      forward pass      0.0005... GFLOPs
      stride            2 px: height and width must be multiples of it
      height scale      10 m count as 1
      normalisation     GroupNorm (adaptive: batch_size = 8 is below 16)
      dropout           0
      stochastic depth  0 in the deepest block
      precision         float32
      spectral norm     none
      backward pass     keeps features
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    parts = {str(name): jax.tree.leaves(part) for name, part in params.items()}
    rows = [(name, f"{sum(leaf.size for leaf in leaves):,}") for name, leaves in parts.items()]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 1e6
    output, flops = _forward(model, shape)
    rows += [
        ("total", f"{parameter_count(model):,} parameters, {size:.2f} MB"),
        ("input", _shape(shape)),
        ("output", output),
        ("forward pass", "cost not known" if flops is None else f"{flops / 1e9:.3g} GFLOPs"),
        *(_settings(model) if isinstance(model, Network) else []),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([type(model).__name__, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _forward(model: nnx.Module, shape: tuple[int, ...]) -> tuple[str, float | None]:
    """What comes out for an input of ``shape``, in words, and the operations that this takes."""
    graph, state = nnx.split(model)

    def run(state: Any, *inputs: Any) -> Any:
        module: Any = nnx.merge(graph, state)
        return module(*inputs)

    tile, threshold = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    taken = len(inspect.signature(type(model).__call__).parameters) - 1
    inputs = (tile, threshold)[: min(taken, 2)]
    lowered = jax.jit(run).lower(state, *inputs)
    outputs = ", ".join(f"{_shape(leaf.shape)} {leaf.dtype}" for leaf in jax.tree.leaves(lowered.out_info))
    cost: Any = lowered.cost_analysis() or {}
    return outputs, cost.get("flops")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _settings(model: Network) -> list[tuple[str, str]]:
    """The settings of a network of this library."""
    return [
        ("stride", f"{model.stride} px: height and width must be multiples of it"),
        ("height scale", f"{model.height_scale:g} m count as 1"),
        ("normalisation", _normalisation(model)),
        ("dropout", f"{model.dropout.rate:g}"),
        ("stochastic depth", f"{model.drop_path_rate:g} in the deepest block"),
        ("precision", model.precision),
        ("spectral norm", "of every convolution" if model.spectral_norm else "none"),
        ("backward pass", "computes features again" if model.remat else "keeps features"),
    ]


def _normalisation(model: Network) -> str:
    chosen = {"batch": "BatchNorm", "group": "GroupNorm"}[choose_norm(model.norm, model.batch_size)]
    if chosen == "BatchNorm":
        whole = (
            "of the whole batch"
            if model.batch_norm_parts == 1
            else f"of each of {model.batch_norm_parts} parts"
        )
        chosen += f", statistics {whole}"
    if model.norm != "adaptive" or model.batch_size is None:
        return chosen
    reason = "below" if model.batch_size < BATCH_OF_BATCH_NORM else "not below"
    return f"{chosen} (adaptive: batch_size = {model.batch_size} is {reason} {BATCH_OF_BATCH_NORM})"
