"""One of two processes that stream together; what it was told is written to a file as JSON.

python -m tests.streaming PORT NUMBER stop | goon, in a folder with run.toml, plots/ and row/.
"""

import json
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from forestgaps_jax import Config
from forestgaps_jax.cli import main as command
from forestgaps_jax.compilation import CompileGuard
from forestgaps_jax.data import stream
from forestgaps_jax.data.placing import on_devices, refuse_uneven
from forestgaps_jax.data.stream_tiles import TileReader
from forestgaps_jax.parallel import Devices, done_by_each, done_by_main, own_share, said_by_each
from tests.talking import refused

ROW = Config(batch_size=4, tile_size=16, tile_overlap=0.0, augment=False, thresholds=(5.0,))
"""Settings of streams over row/, whose pairs are two tiles each: one batch."""


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def train(name: str, *words: str) -> int:
    return command(["train", "run.toml", "--name", name, *words])


def passed(pairs: Any, config: Config) -> dict[str, Any]:
    """What comes of one pass over pairs: the tiles that were read here, and what could not be."""
    source = on_devices(stream(pairs, config, shuffle=False), Devices.of(0))
    epoch = source.epoch(0)
    read = [shard.data for item in epoch for shard in item.used.addressable_shards]
    return {"batches": len(read), "here": int(np.sum(read)), "unread": epoch.unread.by_file()}


def with_a_file_cut_off(second: Path) -> dict[str, Any]:
    """A pass over a sound pair, which the first process reads, and one that breaks, which the second does."""
    sources = stream("row", ROW, shuffle=False)
    said_by_each("opened")
    done_by_main(lambda: os.truncate(second, second.stat().st_size // 2))
    return passed(sources.pairs, ROW)


def refusals(number: int) -> dict[str, str]:
    """What is refused where the processes have not the same."""
    sound = stream("row", ROW, shuffle=False)
    uneven = stream(sound.pairs[: 1 + number], ROW, shuffle=False)
    elsewhere = replace(sound, places=sound.places + np.int32(number))
    missing = Path("plots" if number == 0 else "nowhere")
    return {
        "lists": refused(lambda: refuse_uneven({"data.val": [None] * (2 + number)})),
        "uneven": refused(lambda: refuse_uneven({"data.train": uneven})),
        "elsewhere": refused(lambda: refuse_uneven({"data.train": elsewhere})),
        "even": refused(lambda: refuse_uneven({"data.train": sound})),
        "share": refused(lambda: on_devices(replace(sound, share=(0, 1)), Devices.of(0))),
        "batch": refused(lambda: stream("row", replace(ROW, batch_size=3))),
        "missing": refused(lambda: done_by_each(lambda: list(missing.iterdir()))),
    }


def slow_down(stop_at: int) -> None:
    """Send SIGTERM to the second process when it has read so many tiles; from then on its disk is slow."""
    read, numbers = TileReader.__call__, count(1)

    def slowly(self: TileReader, *arguments: Any) -> Any:
        number = next(numbers)
        if own_share()[0] == 1 and number >= stop_at:
            if number == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        return read(self, *arguments)

    TileReader.__call__ = slowly  # type: ignore[method-assign]


def main() -> None:
    port, number, what = sys.argv[1:]
    rank = ["--distributed", f"localhost:{port}", "--process-id", number, "--process-count", "2"]
    if what == "stop":
        slow_down(stop_at=30)
        sys.exit(train("stopped", *rank))
    said, again = Said(), []
    logging.getLogger("forestgaps_jax").addHandler(said)
    CompileGuard._warn = lambda self, changes: again.append(changes)  # type: ignore[method-assign]
    told: dict[str, Any] = {"went on": train("stopped", *rank), "after going on": said.lines[:]}
    said.lines.clear()
    told |= {"whole": train("whole"), "compiled again": again, "after the whole": said.lines[:]}
    told["words"] = said_by_each("é" * 3 * int(number))
    told["refused"] = refusals(int(number))
    told["empty"] = passed(stream("row", ROW).pairs[:1], ROW)
    said.lines.clear()
    told["cut off"] = with_a_file_cut_off(Path("row/1_DSM.tif"))
    told["said"] = said.lines
    told["without a folder"] = train("lost", "--sites", "plots" if number == "0" else "nowhere")
    Path(f"told{number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
