"""Checkpoints of a training: the one room that knows Orbax.

A checkpoint holds arrays and JSON; opening one runs no code. Each file has a checksum, so that what was torn,
cut off or changed on the disk is never taken for what was saved.
"""

from forestgaps_jax.checkpoint.contents import DamagedCheckpoint, versions
from forestgaps_jax.checkpoint.disk import reached_preemption
from forestgaps_jax.checkpoint.reading import Checkpoint, best, latest, restore, restore_one, set_aside
from forestgaps_jax.checkpoint.writing import Checkpointer, save_one

__all__ = [
    "Checkpoint",
    "Checkpointer",
    "DamagedCheckpoint",
    "best",
    "latest",
    "reached_preemption",
    "restore",
    "restore_one",
    "save_one",
    "set_aside",
    "versions",
]
