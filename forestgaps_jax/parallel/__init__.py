"""Many devices and many processes: who holds what, and who speaks for all."""

from forestgaps_jax.parallel.alarm import Alarm
from forestgaps_jax.parallel.arrays import from_all, gathered, is_here, on_one_device
from forestgaps_jax.parallel.devices import AXES, AXES_HERE, ONE_DEVICE, Devices, keep_state, share_batch
from forestgaps_jax.parallel.each import done_by_each, said_by_each
from forestgaps_jax.parallel.joining import join_processes
from forestgaps_jax.parallel.processes import (
    done_by_main,
    is_alone,
    is_main,
    own_share,
    refuse_different,
    refuse_unshared,
    said_by_main,
    wait_for_all,
)

__all__ = [
    "AXES",
    "AXES_HERE",
    "ONE_DEVICE",
    "Alarm",
    "Devices",
    "done_by_each",
    "done_by_main",
    "from_all",
    "gathered",
    "is_alone",
    "is_here",
    "is_main",
    "join_processes",
    "keep_state",
    "on_one_device",
    "own_share",
    "refuse_different",
    "refuse_unshared",
    "said_by_each",
    "said_by_main",
    "share_batch",
    "wait_for_all",
]
