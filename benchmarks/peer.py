r"""Time and memory of `unet_film` against the same network in PyTorch, as its best users run it.

Every contestant is a process of its own that builds, compiles and then waits. They take turns: in each round
every one makes some steps while the others sleep, so all of them see the same drift of the machine. Printed
are median and quartiles of the seconds a step, the peak memory (of the steps, and of building), and median
and quartiles over the rounds of the ratio of our time to that of the PyTorch contestants of the same
precision: below 1, we are faster.

Contestants:
    ours           forestgaps_jax as its users run it: one compiled step, its own sampler in end-to-end
    eager          PyTorch without further thought
    channels_last  the same with channels last in memory, the fused AdamW, and a malloc that keeps memory
    compile        the same with torch.compile
    max-autotune   the same with its mode of that name: CUDA graphs on a GPU, constant weights in inference
    habits         eager, and every metric of every sample goes to the host in every step (training only)
    NAME-bf16      each of them in bfloat16 (PyTorch: autocast)

What is timed:
    train          steps on one batch that is there: forward, backward, AdamW, exact counts by threshold
    end-to-end     the same with a new batch each step: our sampler inside the step, their DataLoader beside
    inference      gap probabilities of one batch, each waited for

Examples:
    python benchmarks/peer.py --json before.json
    python benchmarks/peer.py --contestants ours compile --against before.json   # after a change of ours
    python benchmarks/peer.py --what inference --precision bfloat16              # on a CPU with AMX, or a GPU
    python benchmarks/peer.py --batch 64 --tile 256 --precision bfloat16 --steps 20 \
        --contestants ours-bf16 compile-bf16 max-autotune-bf16                   # on a GPU
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from timing import machine, quartiles, versions

TORCH = ("eager", "channels_last", "compile", "max-autotune", "habits")
PLAIN = ("ours", *TORCH)
NAMES = (*PLAIN, *(f"{name}-bf16" for name in PLAIN))
COMPARABLE = ("what", "batch", "tile", "features", "depth")
THRESHOLDS = (5.0, 10.0, 15.0, 20.0)
SITES = 4
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""Makes glibc keep what is freed, as the allocators do that PyTorch's guide to CPUs recommends: else the
kernel clears every large tensor anew."""
DISTURBED = 0.2
"""Cores that others keep busy, from which times are not to be trusted (workers that load data are others)."""

Rasters = list[tuple[np.ndarray, np.ndarray]]
"""Surface and canopy height of each site, metres."""


# The parent: deals turns, adds up, compares.


def main() -> None:
    options = parse()
    if options.child:
        serve(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Let the contestants take turns; print and write what came out."""
    stored = json.loads(Path(options.against).read_text()) if options.against else None
    if stored:
        check_comparable(vars(options), stored["settings"])
    with tempfile.TemporaryDirectory() as folder:
        rasters = Path(folder) / "rasters.npz"
        subprocess.run(child_command(options, "rasters", rasters), check=True, stdout=subprocess.DEVNULL)
        children = start(options, rasters)
        seconds = take_turns(children, options)
        record = {
            "command": " ".join([Path(sys.executable).name, *sys.argv]),
            "settings": vars(options),
            "machine": {
                **machine(),
                "devices": sorted({child.about["device"] for child in children.values()}),
            },
            "versions": versions(),
            "contestants": {name: child.summary(seconds[name]) for name, child in children.items()},
        }
    record["ratios"] = ratios(seconds)
    if stored:
        record["against"] = against(record, stored)
    report(record)
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--what", choices=("train", "inference", "end-to-end"), default="train")
    parser.add_argument("--batch", type=int, default=4, help="tiles in a step (4)")
    parser.add_argument("--tile", type=int, default=128, help="side of a tile, px (128)")
    parser.add_argument("--features", type=int, default=32, help="channels of the first level (32)")
    parser.add_argument("--depth", type=int, default=4, help="times that the network halves the tile (4)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (9)")
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn (3; more on a GPU)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="whom to compare where --contestants does not say it: the plain ones, or those in bfloat16",
    )
    parser.add_argument("--contestants", nargs="+", choices=NAMES, metavar="NAME", help="see above")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--against", metavar="FILE", help="a --json of before: how much faster are we now?")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.contestants = options.contestants or default_contestants(options.what, options.precision)
    if options.what == "inference" and any("habits" in name for name in options.contestants):
        parser.error("habits is of training only")
    return options


def default_contestants(what: str, precision: str) -> list[str]:
    plain = [name for name in PLAIN if name != "habits" or what != "inference"]
    if precision == "float32":
        return plain
    return [f"{name}-bf16" for name in plain if name not in ("eager", "habits")]


def check_comparable(now: dict[str, Any], then: dict[str, Any]) -> None:
    """Refuse a stored run of another task."""
    other = [f"--{name} {then[name]}" for name in COMPARABLE if then[name] != now[name]]
    if other:
        sys.exit(f"the stored run is of another task: it had {', '.join(other)}")


def child_command(options: argparse.Namespace, name: str, rasters: Path) -> list[str]:
    sizes = [f"--{key}={getattr(options, key)}" for key in COMPARABLE]
    return [sys.executable, __file__, *sizes, "--child", name, str(rasters)]


class Child:
    """A contestant in a process of its own.

    Attributes:
        about: what it said of itself once it was ready.
        others: cores that were busy with something else, in each turn.
    """

    def __init__(self, name: str, command: list[str], errors: Path):
        self.name, self.errors, self.others = name, errors, []
        # JAX would take most of a GPU's memory at once, which here others need too.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
            env=os.environ
            | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            | (KEEP_MEMORY if tuned(name) else {}),
        )
        self.about = self._answer()

    def seconds(self, steps: int) -> float:
        """Of one step, the mean of some."""
        busy = busy_seconds()
        turn = self._ask(str(steps))
        others = busy_seconds() - busy - turn["cpu_seconds"]
        self.others.append(max(others, 0.0) / turn["seconds"])
        return turn["seconds"] / steps

    def summary(self, seconds: list[float]) -> dict[str, Any]:
        """All that is known of it; it ends."""
        low, median, high = quartiles(seconds)
        about = self.about | self._ask("end") | {"seconds": seconds, "other_cores": self.others}
        self.process.wait()
        return about | {"median": median, "low": low, "high": high}

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("\n".join(self.errors.read_text().strip().splitlines()[-15:]))
        return json.loads(line)


def start(options: argparse.Namespace, rasters: Path) -> dict[str, Child]:
    """Build the contestants one after the other; those that cannot run here are told and left out."""
    children = {}
    for name in options.contestants:
        command = child_command(options, name, rasters)
        try:
            children[name] = Child(name, command, rasters.with_name(f"{name}.log"))
        except RuntimeError as error:
            print(f"{name} cannot run here:\n{error}", file=sys.stderr)
            continue
        print(f"{name} is ready after {children[name].about['build_seconds']:.0f} s", file=sys.stderr)
    if not children:
        sys.exit("no contestant can run here")
    return children


def take_turns(children: dict[str, Child], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step, round by round; every other round goes the other way round."""
    seconds: dict[str, list[float]] = {name: [] for name in children}
    for number in range(options.rounds):
        for child in list(children.values())[:: 1 if number % 2 == 0 else -1]:
            time.sleep(0.2)  # the threads of the one before are still looking for work
            seconds[child.name].append(child.seconds(options.steps))
    return seconds


def busy_seconds() -> float:
    """What all processors together have worked since the machine started; 0 where that is not told."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def rival(name: str, other: str) -> bool:
    """Whether these are ours and PyTorch's, of one precision."""
    return is_ours(name) and not is_ours(other) and name.endswith("-bf16") == other.endswith("-bf16")


def tuned(name: str) -> bool:
    """Whether this is PyTorch of someone who tunes it."""
    return not name.startswith(("ours", "eager", "habits"))


def is_ours(name: str) -> bool:
    return name.startswith("ours")


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Our time over that of each PyTorch contestant of the same precision, and which is the fastest."""
    found = {}
    for name, times in seconds.items():
        rivals = [other for other in seconds if rival(name, other)]
        if not rivals:
            continue
        over = {}
        for other in rivals:
            low, median, high = quartiles([a / b for a, b in zip(times, seconds[other], strict=True)])
            over[other] = {"median": median, "low": low, "high": high}
        fastest = min(rivals, key=lambda other: statistics.median(seconds[other]))
        found[name] = {"fastest": fastest, **over[fastest], "over": over}
    return found


def against(record: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Our time over that of a stored run, each as a multiple of what the same rival took in that run."""
    if record["machine"]["cpu"] != stored["machine"]["cpu"]:
        print(f"the stored run is of another processor: {stored['machine']['cpu']}", file=sys.stderr)
    found = {}
    for name, now in record["ratios"].items():
        then = stored["ratios"].get(name, {"over": {}})
        shared = [other for other in now["over"] if other in then["over"]]
        if not shared:
            continue
        by = {other: now["over"][other]["median"] / then["over"][other]["median"] for other in shared}
        plain = record["contestants"][name]["median"] / stored["contestants"][name]["median"]
        found[name] = {"median": statistics.median(by.values()), "by_rival": by, "not_normalised": plain}
    return found


def report(record: dict[str, Any]) -> None:
    """Print the tables."""
    settings, where = record["settings"], record["machine"]
    print(
        f"{settings['what']}, {settings['batch']} x {settings['tile']} px, {settings['features']} features, "
        f"depth {settings['depth']}, on {where['cores']} cores of {where['cpu']}"
        f"{''.join(f', {device}' for device in where['devices'] if device != 'cpu')}"
    )
    columns = (("ms a step", 10), ("quartiles", 17), ("peak MB", 10), ("to build", 9), ("s to build", 11))
    print(" " * 20, *(f"{title:>{width}s}" for title, width in columns))
    for name, found in record["contestants"].items():
        low, median, high = (1000 * found[key] for key in ("low", "median", "high"))
        print(
            f"{name:20s} {median:10.1f} {low:8.1f} {high:8.1f} {found['peak_mb']:10.0f} "
            f"{found['build_peak_mb']:9.0f} {found['build_seconds']:11.1f}"
        )
    others = statistics.mean(
        share for found in record["contestants"].values() for share in found["other_cores"]
    )
    if others > DISTURBED:
        print(f"{others:.1f} cores were busy with something else: measure again when the machine is quiet")
    for name, found in record["ratios"].items():
        for other, ratio in found["over"].items():
            mark = "  <- the fastest" if other == found["fastest"] else ""
            print(
                f"{name} / {other}: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}){mark}"
            )
    for name, found in record.get("against", {}).items():
        by = ", ".join(f"by {other} {ratio:.3f}" for other, ratio in found["by_rival"].items())
        print(
            f"{name}: {found['median']:.3f} of the stored run's time, the machine's drift taken off ({by}); "
            f"{found['not_normalised']:.3f} with it"
        )


# The children: build, then step when they are told.


class Contestant(Protocol):
    """Something that makes steps."""

    device: str
    parameters: int

    def run(self, steps: int) -> None:
        """Make steps, and wait until they are done."""
        ...

    def device_peak_mb(self) -> float | None:
        """Most memory of the accelerator so far; None where there is none."""
        ...


def serve(options: argparse.Namespace) -> None:
    """The life of a child: it speaks in lines of JSON, and what libraries print goes to the errors."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, path = options.child
    begin = time.perf_counter()
    if name == "rasters":
        return write_rasters(Path(path), side=max(4 * options.tile, 64))
    rasters = read_rasters(Path(path))
    contestant: Contestant = (Ours if is_ours(name) else Theirs)(name, options, rasters)
    contestant.run(3)
    # The highest memory from here on is that of steps.
    build_peak, built = peak_mb(), time.perf_counter() - begin
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    about = {"device": contestant.device, "parameters": contestant.parameters, "build_seconds": built}
    print(json.dumps(about), file=channel, flush=True)
    for line in map(str.strip, sys.stdin):
        if line == "end":
            device = contestant.device_peak_mb()
            memory = {"peak_mb": peak_mb() if device is None else device, "build_peak_mb": build_peak}
            print(json.dumps(memory | {"host_peak_mb": peak_mb()}), file=channel, flush=True)
            break
        start, worked = time.perf_counter(), time.process_time()
        contestant.run(int(line))
        turn = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
        print(json.dumps(turn), file=channel, flush=True)


def peak_mb() -> float:
    """The most memory that this process has had, without its children."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_rasters(path: Path, side: int) -> None:
    """Draw the sites: heights are known everywhere, as the peer needs it."""
    from forestgaps_jax.data import virtual_forest

    sites = [virtual_forest(seed, (side, side), slope=8.0 * seed) for seed in range(SITES)]
    np.savez(path, dsm=[site.dsm for site in sites], chm=[site.chm for site in sites])


def read_rasters(path: Path) -> Rasters:
    with np.load(path) as arrays:
        return list(zip(arrays["dsm"], arrays["chm"], strict=True))


def fixed_batch(rasters: Rasters, batch: int, tile: int) -> dict[str, np.ndarray]:
    """Tiles side by side, ``[batch, tile, tile]``, with labels at the thresholds in turn."""
    per_side = rasters[0][0].shape[0] // tile
    starts = range(0, per_side * tile, tile)
    windows = [np.s_[row : row + tile, column : column + tile] for row in starts for column in starts]
    cut = [np.stack([dsm[window], chm[window]]) for window in windows for dsm, chm in rasters]
    dsm, chm = np.stack([cut[i % len(cut)] for i in range(batch)]).swapaxes(0, 1)
    threshold = np.resize(np.array(THRESHOLDS, np.float32), batch)
    mask = (chm < threshold[:, None, None]).astype(np.float32)
    return {"dsm": dsm, "chm": chm, "mask": mask, "threshold": threshold}


class Ours:
    """forestgaps_jax, as its training loop runs it."""

    def __init__(self, name: str, options: argparse.Namespace, rasters: Rasters):
        import jax
        import jax.numpy as jnp

        from forestgaps_jax import Batch, Config, create_state
        from forestgaps_jax.data import create_data
        from forestgaps_jax.models import create_model_from_config
        from forestgaps_jax.recipe import make_recipe
        from forestgaps_jax.steps import make_train_step, predict_step
        from forestgaps_jax.totals import Totals
        from forestgaps_jax.types import Grid, Site

        config = Config(
            batch_size=options.batch,
            tile_size=options.tile,
            features=options.features,
            depth=options.depth,
            thresholds=THRESHOLDS,
            precision="bfloat16" if name.endswith("-bf16") else "float32",
            val_fraction=0.0,
            test_fraction=0.0,
        )
        self.what, self.jax, self.predict_step = options.what, jax, predict_step
        self.state = create_state(create_model_from_config(config), config)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        self.device = jax.devices()[0].device_kind
        self.totals = Totals.zeros(config.thresholds, training=True)
        if options.what == "end-to-end":
            sites = [Site(f"site {i}", *pair, Grid(1.0)) for i, pair in enumerate(rasters)]
            self.source: Any = create_data(sites, config).train
            steps_per_epoch = self.source.steps_per_epoch
        else:
            parts = fixed_batch(rasters, options.batch, options.tile)
            images = {key: jnp.asarray(parts[key][..., None]) for key in ("dsm", "mask", "chm")}
            # What the sampler gives, which most users train from.
            self.source = Batch(
                threshold=jnp.asarray(parts["threshold"]),
                valid=jnp.ones(images["dsm"].shape, bool),
                resolution=jnp.ones(options.batch),
                **images,
            )
            steps_per_epoch = 100
        self.step = make_train_step(make_recipe(config, steps_per_epoch))

    def run(self, steps: int) -> None:
        """Make steps, and wait until they are done."""
        for _ in range(steps):
            if self.what == "inference":
                self.jax.block_until_ready(
                    self.predict_step(self.state, self.source.dsm, self.source.threshold)
                )
            else:
                self.state, self.totals, _ = self.step(self.state, self.totals, self.source)
        self.jax.block_until_ready((self.state, self.totals))

    def device_peak_mb(self) -> float | None:
        """Most memory of the accelerator so far; None where there is none."""
        found = self.jax.devices()[0].memory_stats()
        return found["peak_bytes_in_use"] / 1e6 if found else None


class Theirs:
    """PyTorch, in one of the variants of `torch_peer`."""

    def __init__(self, name: str, options: argparse.Namespace, rasters: Rasters):
        import torch
        import torch_peer

        self.torch, self.what = torch, options.what
        self.place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_flush_denormal(True)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX has it; nothing on a CPU
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        network, variant = torch_peer.FiLMUNet(options.features, options.depth), torch_peer.VARIANTS[name]
        self.parameters = sum(p.numel() for p in network.parameters())
        self.device = torch.cuda.get_device_name() if self.place.type == "cuda" else "cpu"
        parts = fixed_batch(rasters, options.batch, options.tile)
        dsm, mask = (torch.from_numpy(parts[key][:, None]).to(self.place) for key in ("dsm", "mask"))
        batch = torch_peer.Tiles(dsm, mask, torch.from_numpy(parts["threshold"]).to(self.place))
        if options.what == "inference":
            self.predictor = torch_peer.Predictor(network, variant, self.place)
        else:
            self.trainer = torch_peer.Trainer(network, variant, THRESHOLDS, self.place)
        self.batches: Iterator[torch_peer.Tiles] = repeat(batch)
        self.batch = batch
        if options.what == "end-to-end":
            workers = max((os.cpu_count() or 1) // 2, 1)
            dataset = torch_peer.RandomTiles(rasters, options.tile, THRESHOLDS)
            self.batches = torch_peer.load_tiles(dataset, options.batch, workers, self.place)

    def run(self, steps: int) -> None:
        """Make steps, and wait until they are done."""
        for _ in range(steps):
            if self.what == "inference":
                self.predictor.predict(self.batch.dsm, self.batch.threshold)
                self._wait()
            else:
                self.trainer.step(next(self.batches))
        self._wait()

    def _wait(self) -> None:
        if self.place.type == "cuda":
            self.torch.cuda.synchronize()

    def device_peak_mb(self) -> float | None:
        """Most memory of the accelerator so far; None where there is none."""
        on_gpu = self.place.type == "cuda"
        return self.torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None


if __name__ == "__main__":
    main()
