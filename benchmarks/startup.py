"""Seconds that a new process needs until it does something.

    python benchmarks/startup.py [ROUNDS] [--parts imports network training] [--json FILE]

imports: of jax, of the library, of all its names; and the --help of commands. network: making one about as
large as the quickstart's, with the library's initialiser and with flax's. training: ``forestgaps-jax train
configs/quickstart.toml``, cold (nothing compiled before) and warm (the same command again), until its first
step is compiled and handed to the device, and in all.

All are measured in turns in each round, the trainings in a folder of the round's own; medians are told, with
the least and the most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.toml"
COMMAND = "import sys; from forestgaps_jax.cli import main; sys.exit(main())"
IMPORTS = {
    "import jax": ["import jax"],
    "import forestgaps_jax": ["import forestgaps_jax"],
    "from forestgaps_jax import *": ["from forestgaps_jax import *"],
    "forestgaps-jax --help": [COMMAND, "--help"],
    "forestgaps-jax train --help": [COMMAND, "train", "--help"],
}
NETWORKS = "forestgaps_jax he_normal", "nnx.initializers.he_normal"
MAKE = """
import time
from functools import partial
import jax
from flax import nnx
from forestgaps_jax.layers import conv
from forestgaps_jax.models import create_model, film
if {flax}:
    conv.he_normal = film.he_normal = nnx.initializers.he_normal()
jax.random.key(0).block_until_ready()
start = time.perf_counter()
model = create_model("unet_film", rngs=nnx.Rngs(0), features=16, depth=3)
jax.block_until_ready(nnx.to_pure_dict(nnx.state(model)))
print(time.perf_counter() - start)
"""

Seconds = Iterator[tuple[str, float]]


def imports(environment: dict[str, str]) -> Seconds:
    for name, words in IMPORTS.items():
        start = time.perf_counter()
        command = [sys.executable, "-c", *words]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        yield name, time.perf_counter() - start


def network(environment: dict[str, str]) -> Seconds:
    for name in NETWORKS:
        command = [sys.executable, "-c", MAKE.format(flax=name.startswith("nnx"))]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        yield name, float(run.stdout)


def training(environment: dict[str, str]) -> Seconds:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--runs-dir", f"{folder}/runs", "--resume", "never"]
        options += ["--compilation-cache-dir", f"{folder}/cache"]
        command = [sys.executable, "-u", "-c", COMMAND, "train", str(QUICKSTART), *options]
        for name in ("cold", "warm"):
            start = time.perf_counter()
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("the training step was"):
                        yield f"{name} training, first step", time.perf_counter() - start
            if process.returncode:
                raise SystemExit(f"the training ended with status {process.returncode}")
            yield f"{name} training, in all", time.perf_counter() - start


PARTS = {part.__name__: part for part in (imports, network, training)}


def measure(parts: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by what was measured."""
    # A cache that the shell has given would make every start a warm one.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for part in parts:
            for name, value in PARTS[part](environment):
                seconds.setdefault(name, []).append(value)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> str:
    medians = (statistics.median(seconds[name]) for name in (one, other))
    return f"{one} / {other}: ratio of medians {next(medians) / next(medians):.2f}"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    seconds = measure(options.parts, options.rounds)
    for name, values in seconds.items():
        spread = f"({min(values):.2f} to {max(values):.2f})"
        print(f"{name:32} median {statistics.median(values):6.2f} s  {spread}")
    if "network" in options.parts:
        print(ratio(seconds, *NETWORKS))
    if "training" in options.parts:
        print(ratio(seconds, "warm training, first step", "cold training, first step"))
    if options.json:
        Path(options.json).write_text(json.dumps(seconds, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
