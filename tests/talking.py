"""One of two processes that talk to each other; one line of JSON.

python -m tests.talking PORT NUMBER FOLDER
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forestgaps_jax.parallel import (
    Alarm,
    done_by_main,
    is_main,
    join_processes,
    own_share,
    refuse_different,
    refuse_unshared,
    said_by_main,
    wait_for_all,
)


def refused(act: Callable[[], object]) -> str:
    """What an act is refused with."""
    try:
        act()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def rings(seconds: float) -> tuple[int, int]:
    """The call at which an alarm rings, and how often the processes asked each other until then."""
    alarm, calls, asked, ask_at = Alarm(seconds), 1, 0, 0
    while not alarm.rings():
        asked += alarm._asks_at != ask_at
        calls, ask_at = calls + 1, alarm._asks_at
        time.sleep(0.001 * (1 + own_share()[0]))
    return calls, asked


def main() -> None:
    port, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    join_processes(f"localhost:{port}", number, 2)
    own = folder / str(number)
    own.mkdir()
    missing = folder / "missing" / "file"
    told = {
        "share": own_share(),
        "main": is_main(),
        "said": said_by_main(lambda: f"Forêt {number}"),
        "nothing": said_by_main(lambda: ""),
        "failed": refused(lambda: done_by_main(missing.read_bytes)),
        "done": refused(lambda: done_by_main(lambda: None)),
        "different": refused(lambda: refuse_different("the seed", str(number))),
        "same": refused(lambda: refuse_different("the seed", "1")),
        "unshared": refused(lambda: refuse_unshared(own)),
        "shared": refused(lambda: refuse_unshared(folder)),
        "rings": rings(1.0),
        "rings at once": rings(0.0),
    }
    wait_for_all("the end")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
