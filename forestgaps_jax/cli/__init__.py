"""The command line: ``forestgaps-jax train | evaluate | predict | report | gaps | replay | info``."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forestgaps_jax.cli.info import info
from forestgaps_jax.cli.maps import gaps, predict, report
from forestgaps_jax.cli.training import evaluate, replay, train

_USAGE = """usage: forestgaps-jax COMMAND ...

  train [CONFIG.toml] [--setting value ...]   train a gap model; see configs/ for examples
  evaluate RUN_FOLDER [--setting value ...]   score a run again, on its test tiles or on other rasters
  predict RUN_FOLDER DSM.tif [--out maps]     gap maps of a whole raster, as GeoTIFFs, and a picture
  report RUN_FOLDER                           a run as one HTML page: scores, maps, worst tiles
  gaps MAP.tif [--min-area 5 ...]             gaps as polygons (GeoPackage), a table and statistics
  replay RUN_FOLDER                           look at the batch in which a training has diverged
  info                                        versions and devices

forestgaps-jax COMMAND --help lists the settings of a command, with defaults and meanings."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status, 130 after Ctrl-C; SIGTERM exits with 143."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {"train": train, "evaluate": evaluate, "predict": predict}
    commands |= {"report": report, "gaps": gaps, "info": info, "replay": replay}
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    if command not in commands:
        print(f"forestgaps-jax: there is no command {command!r}\n\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        with _terminable():
            commands[command](rest)
    except KeyboardInterrupt as stop:
        if not str(stop):  # a training has told already
            print(f"\nforestgaps-jax {command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"forestgaps-jax {command}: {error}: pip install {error.name}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"forestgaps-jax {command}: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does; a training takes both itself."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) in (signal.SIG_IGN, None):
        yield
        return

    def end(number: int, frame: Any) -> None:
        print("\nforestgaps-jax: terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
