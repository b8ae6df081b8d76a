"""What the benchmarks of speed compute beside the clock."""

from functools import partial

import growth_report
import jax
import jax.numpy as jnp
import pytest
from convolutions import Layer, find_convolutions, step_convolutions
from roofline import roofline
from timing import markdown_table, quartiles, take_turns
from trace_gaps import gaps
from training_step import random_batch

from forestgaps_jax import Config

IMAGE = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
KINDS = "forward", "input gradient", "weight gradient"


def convolve(image, kernel, stride: int, dilation: int):
    numbers = ("NHWC", "HWIO", "NHWC")
    dilations = (dilation, dilation)
    return jax.lax.conv_general_dilated(
        image, kernel, (stride, stride), "SAME", rhs_dilation=dilations, dimension_numbers=numbers
    )


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_finds_the_three_passes_of_a_convolution(stride: int, dilation: int):
    @jax.jit
    def loss(image, kernel):
        return jnp.sum(convolve(image, kernel, stride, dilation) ** 2)

    found = find_convolutions(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(IMAGE, KERNEL))
    side = 12 // stride
    layer = Layer(IMAGE.shape, KERNEL.shape, (2, side, side, 5), stride, dilation, "float32")
    assert {at: passes.counts for at, passes in found.items()} == {layer: dict.fromkeys(KINDS, 1)}


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_counts_operations_as_xla_does(stride: int, dilation: int):
    convolution = partial(convolve, stride=stride, dilation=dilation)
    (layer,) = find_convolutions(jax.make_jaxpr(convolution)(IMAGE, KERNEL))
    told = jax.jit(convolution).lower(IMAGE, KERNEL).cost_analysis()
    assert layer.flops == told["flops"]


def test_finds_the_layers_of_the_network():
    config = Config(
        model_name="unet_film", batch_size=1, tile_size=16, features=2, depth=1, opening_windows=(5,)
    )
    found = step_convolutions(config, random_batch(config))
    assert {str(layer): passes.counts["forward"] for layer, passes in found.items()} == {
        "16x16 px, 3x3, 2 to 2": 3,  # surface and opening to features, features twice
        "8x8 px, 3x3, 2 to 4": 1,
        "8x8 px, 3x3, 4 to 4": 1,
        "8x8 px, 1x1, 4 to 2": 1,
        "16x16 px, 3x3, 4 to 2": 1,
        "16x16 px, 1x1, 2 to 1": 1,
    }
    first = next(iter(found.values())).counts
    assert first == {"forward": 3, "input gradient": 2, "weight gradient": 3}, "heights need no gradient"


def test_roofline_is_bound_by_what_takes_longest():
    measured = {"peak_flops": 100.0, "peak_bandwidth": 10.0, "step_seconds": (7.0, 8.0, 9.0)}
    found = roofline(200.0, 40.0, measured)
    assert found == {"bounds": {"operations": 2.0, "memory": 4.0}, "bound": "memory", "share": 0.5}
    assert roofline(200.0, None, measured)["share"] == 0.25


def test_gaps_are_between_what_runs_at_once():
    found = gaps([(6000.0, 8000.0), (0.0, 4000.0), (1000.0, 2000.0), (3000.0, 5000.0), (8000.0, 10000.0)])
    assert found == {"busy": 0.9, "count": 1.0, "longest_us": 1.0, "total_us": 1.0}


def test_exponents_are_slopes_in_logarithms():
    steps = [
        {"model": "m", "batch_size": 1, "tile_size": side, "features": 8, "planned_bytes": 10 * side}
        | {"seconds": (0.0, side**2.0, 0.0)}
        for side in (64, 32)
    ]
    other = {"model": "m", "batch_size": 9, "tile_size": 64, "features": 8}
    base = {"batch_size": 1, "tile_size": 32, "features": 8}
    rows = growth_report.along({"base": base, "steps": [*steps, other]}, "m", "tile_size")
    assert [row["tile_size"] for row in rows] == [32, 64]
    assert growth_report.exponent(rows, "tile_size", "seconds") == pytest.approx(2.0)
    assert growth_report.exponent(rows, "tile_size", "memory") == pytest.approx(1.0)


def test_turns_go_forth_and_back():
    called: list[str] = []

    def call(name: str) -> float:
        called.append(name)
        return float(len(called))

    seconds = take_turns({name: partial(call, name) for name in "ab"}, rounds=2, warm_up=1)
    assert "".join(called) == "abbaab"
    assert seconds == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)


def test_tables_are_aligned():
    table = markdown_table(("what", "ms"), [["step", "12.5"], ["x", "3"]])
    assert table.splitlines() == ["| what |   ms |", "| ---- | ---: |", "| step | 12.5 |", "| x    |    3 |"]
