"""Seconds to make the quickstart's network in a new process: the library's initialiser against flax's.

python benchmarks/startup.py [rounds]
"""

import statistics
import subprocess
import sys

MAKE = """
import time
from functools import partial
import jax
from flax import nnx
from forestgaps_jax.models import blocks, create_model, film
if {flax}:
    blocks.conv.keywords["kernel_init"] = film.he_normal = nnx.initializers.he_normal()
jax.random.key(0).block_until_ready()
start = time.perf_counter()
model = create_model("unet_film", rngs=nnx.Rngs(0), features=16, depth=3)
jax.block_until_ready(nnx.to_pure_dict(nnx.state(model)))
print(time.perf_counter() - start)
"""


def main(rounds: int) -> None:
    """Time both alternately and print medians, spreads and their ratio."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for flax, times in seconds.items():
            code = [sys.executable, "-c", MAKE.format(flax=flax)]
            times.append(float(subprocess.run(code, capture_output=True, text=True, check=True).stdout))
    for flax, times in seconds.items():
        name = "nnx.initializers.he_normal" if flax else "forestgaps_jax he_normal"
        print(f"{name}: median {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    print(f"ratio of medians: {statistics.median(seconds[False]) / statistics.median(seconds[True]):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
