"""What the text of a lowered or compiled program tells of it."""

import re
from typing import NamedTuple

HARMLESS_CALLS = {"Sharding", "cu_threefry2x32_ffi"}
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


class Convolution(NamedTuple):
    """Dimensions of what goes in and comes out, as ``b, 0, 1, f``; types of both factors; full precision."""

    image: str
    kernel: str
    result: str
    types: set[str]
    exact: bool


class Gather(NamedTuple):
    """Elements of one slice, and of all."""

    slice: int
    result: int


def doubles(stablehlo: str) -> list[str]:
    """Lines that compute in float64."""
    return [line for line in stablehlo.splitlines() if re.search(r"[<x]f64\b", line)]


def host_calls(stablehlo: str) -> list[str]:
    """What leaves the device: calls to Python, infeed, outfeed, send, receive."""
    calls = re.findall(r"stablehlo\.custom_call\"?[ (]*@(\w+)", stablehlo)
    ways = re.findall(r"stablehlo\.(infeed|outfeed|send|recv)\b", stablehlo)
    return [call for call in calls if call not in HARMLESS_CALLS] + ways


def convolutions(stablehlo: str) -> list[Convolution]:
    """All convolutions."""
    found = []
    for line in stablehlo.splitlines():
        if "stablehlo.convolution" not in line:
            continue
        image, kernel, result = re.search(r"\[([^]]+)\]x\[([^]]+)\]->\[([^]]+)\]", line).groups()
        factors = re.search(r": \((.*)\) ->", line)[1]
        exact = "[#stablehlo<precision HIGHEST>, #stablehlo<precision HIGHEST>]" in line
        types = set(re.findall(r"x([a-z]+\d+)>", factors))
        found.append(Convolution(image, kernel, result, types, exact or "[HIGHEST, HIGHEST]" in line))
    return found


def channels_first(found: list[Convolution]) -> list[Convolution]:
    """Convolutions whose images are not ``[batch, height, width, channels]`` in memory.

    A gradient by the kernel swaps what is batch and what is channel, not where height and width lie.
    """
    return [conv for conv in found if not re.fullmatch(r"[bf], 0, 1, [bf]", conv.image)]


def gathers(stablehlo: str) -> list[Gather]:
    """All gathers."""
    found = []
    for line in stablehlo.splitlines():
        if "stablehlo.gather" not in line:
            continue
        sizes = re.search(r"slice_sizes = array<i64: ([\d, ]+)>", line)[1]
        result = re.search(r"-> tensor<([\dx]*)x?\w+>", line)[1]
        found.append(Gather(_product(sizes.split(",")), _product(result.split("x"))))
    return found


def collectives(compiled: str) -> list[tuple[str, int]]:
    """What devices tell each other: the kind, and the elements of its largest result."""
    found = []
    for line in compiled.splitlines():
        if way := re.search(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", way[1])
            found.append((way[2], max(_product(shape.split(",")) for shape in shapes)))
    return found


def tiles_convolved(compiled: str) -> int:
    """Images in one device's convolutions of the forward pass, ``[batch, height, width, channels]``."""
    forward = r"= \w+\[(\d+),[\d,]+\]\S* convolution\(.*op_name=\"[^\"]*/jvp\(\)/conv"
    return max(int(batch) for batch in re.findall(forward, compiled))


def _product(numbers: list[str]) -> int:
    product = 1
    for number in numbers:
        product *= int(number or 1)
    return product
