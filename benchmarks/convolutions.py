"""The convolutions of a training step, as they stand in its jaxpr: by layer, forward and backward."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from forestgaps_jax import Batch, Config, create_state
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import gradients

KINDS = ("forward", "input gradient", "weight gradient")


class Layer(NamedTuple):
    """What makes a convolution another one.

    Attributes:
        image: ``(batch, height, width, channels)`` of the input.
        kernel: ``(height, width, channels in, channels out)``.
        output: ``(batch, height, width, channels)``.
        stride: pixels between outputs.
        dilation: pixels between the kernel's taps.
        dtype: what it is computed in.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    stride: int
    dilation: int
    dtype: str

    @property
    def flops(self) -> int:
        """Of one pass, forward or backward: a multiplication and an addition for each tap on a pixel.

        Taps on the zeros around the image are left out, as XLA leaves them out of its counts.
        """
        sides = zip(self.image[1:3], self.kernel[:2], self.output[1:3], strict=True)
        rows, columns = (_taps(*side, self.stride, self.dilation) for side in sides)
        return 2 * self.image[0] * rows * columns * self.kernel[2] * self.kernel[3]

    def __str__(self) -> str:
        _, height, width, channels = self.image
        size = f"{self.kernel[0]}x{self.kernel[1]}"
        steps = {"stride": self.stride, "dilation": self.dilation}
        more = "".join(f", {name} {pixels}" for name, pixels in steps.items() if pixels > 1)
        return f"{height}x{width} px, {size}, {channels} to {self.kernel[3]}{more}"


def _taps(pixels: int, kernel: int, outputs: int, stride: int, dilation: int) -> int:
    """Taps on pixels along one side, of all outputs together; half of the zeros stand before ("SAME")."""
    zeros = max((outputs - 1) * stride + dilation * (kernel - 1) + 1 - pixels, 0)
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - zeros // 2
    return int(np.sum((places >= 0) & (places < pixels)))


@dataclass
class Passes:
    """The passes of one layer in a step: an equation of each kind, and how often each kind is there."""

    equations: dict[str, JaxprEqn] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, equation: JaxprEqn) -> None:
        """One more."""
        self.equations.setdefault(kind, equation)
        self.counts[kind] = self.counts.get(kind, 0) + 1


def step_convolutions(config: Config, batch: Batch) -> dict[Layer, Passes]:
    """The convolutions of the training step of ``config``, were all XLA's own; nothing is computed."""
    recipe = make_recipe(config, 100)
    state = create_state(create_model_from_config(config), config)
    with patch("forestgaps_jax.layers.conv.faster_conv3x3", return_value=None):
        return find_convolutions(jax.make_jaxpr(lambda s, b: gradients(recipe, s, b))(state, batch))


def find_convolutions(jaxpr: ClosedJaxpr) -> dict[Layer, Passes]:
    """All convolutions of images, channels last, in a jaxpr and those within it, in their order."""
    found: dict[Layer, Passes] = {}
    for equation in _equations(jaxpr.jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            layer, kind = _read(equation)
            found.setdefault(layer, Passes()).add(kind, equation)
    return found


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(dict(equation.params), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _read(equation: JaxprEqn) -> tuple[Layer, str]:
    """The layer and the kind of a convolution; jax's gradients swap axes, each in its own way."""
    arrays: list[Any] = [var.aval for var in (*equation.invars, *equation.outvars)]
    left, right, out = (array.shape for array in arrays)
    told, numbers = equation.params, equation.params["dimension_numbers"]
    dtype = str(arrays[0].dtype)
    windows, left_holes, right_holes = (
        max(told[name]) for name in ("window_strides", "lhs_dilation", "rhs_dilation")
    )
    if numbers.lhs_spec[0] != 0:  # batch and channels of the image have changed places
        return Layer(left, out, right, right_holes, windows, dtype), KINDS[2]
    if numbers.rhs_spec[0] < numbers.rhs_spec[1]:  # as have the kernel's channels in and out
        return Layer(out, right, left, left_holes, right_holes, dtype), KINDS[1]
    return Layer(left, right, out, windows, right_holes, dtype), KINDS[0]
