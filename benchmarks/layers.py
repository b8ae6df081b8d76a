r"""Where a training step goes, layer by layer, against what the machine can reach.

Each distinct convolution of the step is timed alone: forward, gradient of the input, gradient of the weights,
by XLA with the options of the library, by the library itself where it has another algorithm, and by PyTorch
with channels last where that is installed. All of them, the whole step, and large matrix products by XLA and
PyTorch (the best of these is called the peak) take turns.
Shares are of that peak, which a convolution can surpass by some percent. Sums weigh each layer by how often
the step has it.

A convolution alone is not what it is inside the step, where XLA may fuse what is around it: "the rest" is
the measured step less the sum, and holds normalisation, activations, openings, loss, counts and optimizer.

Examples:
    python benchmarks/layers.py
    python benchmarks/layers.py --bf16 --batch 64 --tile 256      # on a GPU
    python benchmarks/layers.py --model unet_ground --features 16 --json layers.json
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from convolutions import KINDS, Layer, Passes, step_convolutions
from peaks import has_torch, matmul, mean_seconds, torch_matmul, wait_for_torch
from timing import markdown_table, parser_of, quartiles, take_turns, write_record
from training_step import TrainingStep, random_batch

from forestgaps_jax import Config
from forestgaps_jax.compilation import compiler_options
from forestgaps_jax.layers.conv3x3 import faster_conv3x3

STEP = "step"
LIBRARIES: tuple[str, ...] = ("XLA", "ours", "PyTorch")
XLA, OURS, TORCH = LIBRARIES
Ways = dict[str, Callable[[], float]]


def main() -> None:
    options = parse()
    config = Config(
        model_name=options.model, batch_size=options.batch, tile_size=options.tile,
        features=options.features, depth=options.depth, precision="bfloat16" if options.bf16 else "float32",
    )  # fmt: skip
    layers = step_convolutions(config, random_batch(config))
    libraries = LIBRARIES[:2] if options.no_torch or not has_torch() else LIBRARIES
    step = TrainingStep(config)
    products = {XLA: matmul} | ({TORCH: torch_matmul} if TORCH in libraries else {})
    peaks = {library: product(config.precision) for library, product in products.items()}
    ways: Ways = {STEP: partial(step.seconds, 2)}
    ways |= {f"{library} product": product for library, (product, _) in peaks.items()}
    for library in libraries:
        for layer, passes in layers.items():
            ways |= {way_name(library, layer, kind): way for kind, way in passes_of(library, layer, passes)}
    seconds = take_turns(ways, options.rounds, warm_up=1)
    found = {name: quartiles(values) for name, values in seconds.items()}
    reached = {library: flops / min(seconds[f"{library} product"]) for library, (_, flops) in peaks.items()}
    flops = step.cost("flops")
    report(config, layers, libraries, found, reached, flops)
    record = {
        "settings": vars(options), "seconds": found, "peak_flops": reached, "step_flops": flops,
        "device": jax.devices()[0].device_kind,
        "layers": [{"layer": str(at), "flops": at.flops, "counts": p.counts} for at, p in layers.items()],
    }  # fmt: skip
    write_record(options.json, record)


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--model", default="unet_film", help="network (unet_film)")
    parser.add_argument("--batch", type=int, default=4, help="tiles in a step (4)")
    parser.add_argument("--tile", type=int, default=128, help="side of a tile, px (128)")
    parser.add_argument("--features", type=int, default=32, help="channels of the first level (32)")
    parser.add_argument("--depth", type=int, default=4, help="times that the network halves the tile (4)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32, peaks too")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch")
    return parser.parse_args()


def way_name(library: str, layer: Layer, kind: str) -> str:
    return f"{library}: {kind}, {layer}, {layer.dtype}"


def passes_of(library: str, layer: Layer, passes: Passes) -> list[tuple[str, Callable[[], float]]]:
    """What times each pass of a layer that the step has."""
    random = np.random.default_rng(0)
    shapes = layer.image, layer.kernel, layer.output
    arrays = [random.standard_normal(shape, np.float32) for shape in shapes]
    calls = {XLA: xla_calls, OURS: our_calls, TORCH: torch_calls}[library](layer, passes, arrays)
    return [(kind, partial(mean_seconds, calls[kind])) for kind in KINDS if kind in passes.counts]


def xla_calls(layer: Layer, passes: Passes, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The three passes by XLA."""
    image, kernel, change = (jax.numpy.asarray(array, layer.dtype) for array in arrays)
    equation = passes.equations[KINDS[0]]
    convolve = partial(equation.primitive.bind, **equation.params)

    def of_image(kernel: Any, change: Any) -> Any:
        return jax.linear_transpose(lambda x: convolve(x, kernel), image)(change)[0]

    def of_kernel(image: Any, change: Any) -> Any:
        return jax.linear_transpose(lambda w: convolve(image, w), kernel)(change)[0]

    return compiled(passes, (convolve, image, kernel), (of_image, kernel, change), (of_kernel, image, change))


def our_calls(layer: Layer, passes: Passes, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The three passes of a training step as `forestgaps_jax.layers.conv.Conv` makes them."""
    simple = layer.stride == layer.dilation == 1
    faster = faster_conv3x3(layer.image, layer.kernel, layer.dtype) if simple else None
    if faster is None:
        return xla_calls(layer, passes, arrays)
    inputs = tuple(jax.numpy.asarray(array, layer.dtype) for array in arrays)

    def forward(image: Any, kernel: Any, change: Any) -> Any:
        return jax.vjp(faster, image, kernel)[0]

    def backward(which: int, image: Any, kernel: Any, change: Any) -> Any:
        return jax.vjp(faster, image, kernel)[1](change)[which]

    return compiled(
        passes, *((function, *inputs) for function in (forward, partial(backward, 0), partial(backward, 1)))
    )


def compiled(passes: Passes, *kinds: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
    """Compiled calls of a function of each kind on its inputs, which wait for the result."""

    def call(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
        program = jax.jit(function, compiler_options=compiler_options()).lower(*inputs).compile()
        return lambda: program(*inputs).block_until_ready()

    return {kind: call(*each) for kind, each in zip(KINDS, kinds, strict=True) if kind in passes.counts}


def torch_calls(layer: Layer, passes: Passes, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The three passes by PyTorch, channels last in memory."""
    import torch

    place, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, layer.dtype)
    image, change = (torch.tensor(arrays[i]).permute(0, 3, 1, 2) for i in (0, 2))
    kernel = torch.tensor(arrays[1]).permute(3, 2, 0, 1)
    image, kernel, change = (
        tensor.to(place, dtype).contiguous(memory_format=torch.channels_last)
        for tensor in (image, kernel, change)
    )
    pads = passes.equations[KINDS[0]].params["padding"]
    if any(before != after for before, after in pads):
        raise ValueError(f"{layer}: PyTorch pads both sides alike: use --no-torch")
    how = [layer.stride] * 2, [before for before, _ in pads], [layer.dilation] * 2
    backward = partial(
        torch.ops.aten.convolution_backward, change, image, kernel, None, *how, False, [0, 0], 1
    )
    return {
        KINDS[0]: lambda: wait_for_torch(torch.nn.functional.conv2d(image, kernel, None, *how)),
        KINDS[1]: lambda: wait_for_torch(backward([True, False, False])[0]),
        KINDS[2]: lambda: wait_for_torch(backward([False, True, False])[1]),
    }


def report(
    config: Config,
    layers: dict[Layer, Passes],
    libraries: Sequence[str],
    found: dict[str, tuple[float, float, float]],
    reached: dict[str, float],
    flops: float | None,
) -> None:
    """Print the table, the sums and the shares of the peak."""
    peak = max(reached.values())
    titles = ["layer", "times", "GFLOP a pass"]
    for library in libraries:
        titles += [f"{library}, ms", "share of the peak"]
    rows = [row_of(layer, passes, libraries, found, peak) for layer, passes in layers.items()]
    sums = {library: weighted(layers, library, found) for library in libraries}
    rows.append(sum_row(layers, sums, peak))
    told = ", ".join(f"{library} {value / 1e9:.0f}" for library, value in reached.items())
    print(f"peak of {config.precision} matrix products, GFLOP/s: {told}")
    print(f"times and shares: {' / '.join(KINDS)}; medians\n\n{markdown_table(titles, rows)}\n")
    report_step(found[STEP], sum(sums[OURS].values()), flops, peak)


def report_step(
    seconds: tuple[float, float, float], convolutions: float, flops: float | None, peak: float
) -> None:
    """Print what the whole step takes, and how much of it is not convolutions."""
    low, step, high = (1e3 * value for value in seconds)
    print(f"the step {step:.1f} ms ({low:.1f} to {high:.1f}): its convolutions one by one ", end="")
    print(f"{1e3 * convolutions:.1f} ms, the rest {step - 1e3 * convolutions:.1f} ms")
    if flops is None:
        print("operations of the step: not told by the compiler")
    else:
        rate = flops / seconds[1]
        print(f"{flops / 1e9:.2f} GFLOP a step, {rate / 1e9:.0f} GFLOP/s: {rate / peak:.0%} of the peak")


def row_of(
    layer: Layer, passes: Passes, libraries: Sequence[str], found: dict[str, Any], peak: float
) -> list[str]:
    """One layer in the table; a dash for a pass that the step does not have."""
    row = [f"{layer}, {layer.dtype}", str(max(passes.counts.values())), f"{layer.flops / 1e9:.3g}"]
    for library in libraries:
        medians = [found.get(way_name(library, layer, kind), [np.nan] * 3)[1] for kind in KINDS]
        row.append(" / ".join(f"{1e3 * median:.2f}" for median in medians).replace("nan", "-"))
        shares = " / ".join(f"{layer.flops / median / peak:.0%}" for median in medians)
        row.append(shares.replace("nan%", "-"))
    return row


def weighted(layers: dict[Layer, Passes], library: str, found: dict[str, Any]) -> dict[str, float]:
    """Seconds of all convolutions of a step, by kind."""
    return {
        kind: sum(
            passes.counts[kind] * found[way_name(library, layer, kind)][1]
            for layer, passes in layers.items()
            if kind in passes.counts
        )
        for kind in KINDS
    }


def sum_row(layers: dict[Layer, Passes], sums: dict[str, dict[str, float]], peak: float) -> list[str]:
    """The last row: all passes of all layers."""
    flops = {
        kind: sum(layer.flops * passes.counts.get(kind, 0) for layer, passes in layers.items())
        for kind in KINDS
    }
    row = ["all", "", f"{sum(flops.values()) / 1e9:.2f} in all"]
    for seconds in sums.values():
        row.append(" / ".join(f"{1e3 * seconds[kind]:.1f}" for kind in KINDS))
        row.append(" / ".join(f"{flops[kind] / seconds[kind] / peak:.0%}" for kind in KINDS))
    return row


if __name__ == "__main__":
    main()
