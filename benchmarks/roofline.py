r"""How near a training step comes to what the machine can do.

The roofline is the least time that a step can take: its operations at the measured rate of large matrix
products in its precision, or its memory traffic at the measured rate of adding 1 to a large array, whichever
takes longer. Operations and bytes are those of the compiled step as XLA counts them; the bytes are what its
kernels read and write, caches not thought of, so on a CPU the true traffic is less. The operations of the
convolutions are counted from their shapes too; the larger of both is taken, as XLA cannot look into all
libraries that it calls.

"handed over" is how long the host takes to dispatch a step: much less than a step takes, the device never
waits for the host.

Examples:
    python benchmarks/roofline.py                                       # small on a CPU, 64 x 256 px on a GPU
    python benchmarks/roofline.py --precision float32 --largest         # also the largest batch that fits
    python benchmarks/roofline.py --model unet_ground --profile /tmp/trace
    XLA_PYTHON_CLIENT_MEM_FRACTION=.95 python benchmarks/roofline.py --largest   # most of a GPU's memory
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from convolutions import step_convolutions
from peaks import copying, matmul, on_gpu
from timing import parser_of, quartiles, take_turns, write_record
from trace_gaps import read_gaps
from training_step import TrainingStep

from forestgaps_jax import Config

NOT_TOLD = "not told by the compiler"


def main() -> None:
    options = parse()
    config = Config(
        model_name=options.model, batch_size=options.batch, tile_size=options.tile,
        features=options.features, depth=options.depth, precision=options.precision,
    )  # fmt: skip
    device = jax.devices()[0].device_kind
    size = f"{options.batch} x {options.tile} px, {options.features} features, depth {options.depth}"
    print(f"training step of {options.model}, {size}, {options.precision}, on {device}")
    step = TrainingStep(config)
    found = measure(step, options.steps, options.rounds) | counted(step)
    found |= roofline(max(found["flops"] or 0.0, found["convolution_flops"]), found["bytes"], found)
    report(found, config)
    if options.largest:
        found["largest"] = largest(config)
    if options.profile:
        found["trace"] = profile(step, options.profile)
    write_record(options.json, {"settings": vars(options), "device": device, **found})


def parse() -> argparse.Namespace:
    batch, tile = (64, 256) if on_gpu() else (2, 64)
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model", default="unet_film", help="network (unet_film)")
    parser.add_argument("--batch", type=int, default=batch, help=f"tiles in a step (here {batch})")
    parser.add_argument("--tile", type=int, default=tile, help=f"side of a tile, px (here {tile})")
    parser.add_argument("--features", type=int, default=32, help="channels of the first level (32)")
    parser.add_argument("--depth", type=int, default=4, help="times that the network halves the tile (4)")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (10)")
    parser.add_argument("--largest", action="store_true", help="double the batch until memory is out")
    parser.add_argument("--profile", metavar="FOLDER", help="write a trace of 10 steps, for TensorBoard")
    return parser.parse_args()


def measure(step: TrainingStep, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step until it is handed over and until it is done, and the machine's peaks, in turns."""
    product, operations = matmul(step.config.precision)
    copy, traffic = copying()
    handed: list[float] = []

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step.dispatch()
        handed.append((time.perf_counter() - start) / steps)
        step.wait()
        return (time.perf_counter() - start) / steps

    seconds = take_turns({"step": run, "product": product, "copy": copy}, rounds, warm_up=1)
    return {
        "step_seconds": quartiles(seconds["step"]),
        "handed_over_seconds": quartiles(handed[1:]),
        "peak_flops": operations / min(seconds["product"]),
        "peak_bandwidth": traffic / min(seconds["copy"]),
    }


def counted(step: TrainingStep) -> dict[str, Any]:
    """Operations and bytes of a step, and the memory that XLA plans for it; None where it does not say."""
    layers = step_convolutions(step.config, step.batch)
    return {
        "flops": step.cost("flops"),
        "bytes": step.cost("bytes accessed"),
        "planned_bytes": step.planned_bytes(),
        "convolution_flops": sum(at.flops * sum(passes.counts.values()) for at, passes in layers.items()),
        "compile_seconds": step.compile_seconds,
    }


def roofline(flops: float, traffic: float | None, found: dict[str, Any]) -> dict[str, Any]:
    """The least seconds that a step can take, by what, and the share of it in the measured seconds.

    Args:
        flops: operations of a step.
        traffic: bytes that it reads and writes; None if not known: then operations alone bound it.
        found: with ``peak_flops`` and ``peak_bandwidth``, each a second, and ``step_seconds``.
    """
    bounds = {"operations": flops / found["peak_flops"]}
    if traffic is not None:
        bounds["memory"] = traffic / found["peak_bandwidth"]
    bound = max(bounds, key=lambda name: bounds[name])
    return {"bounds": bounds, "bound": bound, "share": bounds[bound] / found["step_seconds"][1]}


def report(found: dict[str, Any], config: Config) -> None:
    """Print what was measured, and what could be."""
    low, median, high = found["step_seconds"]
    told = {name: found[name] and found[name] / 1e9 for name in ("flops", "bytes", "planned_bytes")}
    flops, traffic, planned = (NOT_TOLD if value is None else f"{value:.4g} G" for value in told.values())
    tiles = config.batch_size / median
    lines = {
        "peak, matrix products": f"{found['peak_flops'] / 1e12:.3g} TFLOP/s",
        "peak, memory": f"{found['peak_bandwidth'] / 1e9:.4g} GB/s",
        "operations a step": f"{flops}; its convolutions by shape {found['convolution_flops'] / 1e9:.4g} G",
        "bytes a step": traffic,
        "memory planned, bytes": planned,
        "compilation": f"{found['compile_seconds']:.1f} s",
        "a step": f"{1e3 * median:.2f} ms ({1e3 * low:.2f} to {1e3 * high:.2f})",
        "handed over in": f"{1e3 * found['handed_over_seconds'][1]:.2f} ms a step",
        "samples": f"{tiles:.4g} a second, {tiles * config.tile_size**2 / 1e6:.4g} Mpx/s",
    }
    lines |= {f"least for {name}": f"{1e3 * bound:.2f} ms" for name, bound in found["bounds"].items()}
    lines["share of the roofline"] = f"{found['share']:.1%}, bound by {found['bound']}"
    print("\n".join(f"{name:24s}{value}" for name, value in lines.items()), flush=True)


def largest(config: Config) -> dict[str, Any]:
    """The largest batch that fits, doubled from the configured one."""
    best: dict[str, Any] = {}
    while True:
        try:
            step = TrainingStep(config)
            if not on_gpu() and (step.planned_bytes() or 0) > 0.8 * free_bytes():
                break  # a CPU has no error of its own: the system would end the process
            step.seconds(1)
            seconds = step.seconds(3)
        except jax.errors.JaxRuntimeError as error:
            if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "ut of memory")):
                raise
            break
        best = {"batch": config.batch_size, "seconds": seconds, "planned_bytes": step.planned_bytes()}
        print(
            f"batch {config.batch_size} fits: {config.batch_size / seconds:.4g} samples a second", flush=True
        )
        del step
        config = replace(config, batch_size=2 * config.batch_size)
    print(f"batch {config.batch_size} does not fit")
    return best


def free_bytes() -> int:
    """Memory that a program could still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def profile(step: TrainingStep, folder: str) -> dict[str, float] | None:
    """Write a trace of some steps; print how long the device had nothing to do."""
    with jax.profiler.trace(folder):
        step.seconds(10)
    found = read_gaps(Path(folder))
    if found is None:
        print(f"trace in {folder}: it has no operations of a device (a CPU's are not told apart)")
    else:
        print(f"trace in {folder}: device busy {found['busy']:.1%}, longest gap {found['longest_us']:.1f} us")
    return found


if __name__ == "__main__":
    main()
