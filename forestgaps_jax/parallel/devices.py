"""The devices of a training, and what each of them holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from forestgaps_jax.parallel.arrays import gathered

T = TypeVar("T")

AXES_HERE = ("data", "fsdp")
"""Divide what one process holds of a batch among its devices; the second divides large parameters too."""
AXES = ("process", *AXES_HERE)
"""All divide the samples of a batch."""


@dataclass(frozen=True)
class Devices:
    """The devices of a training, and what each of them holds.

    Every device computes a part of each batch. The state lies whole on each, or with ``fsdp`` in parts on the
    neighbours of one process, so that each process has all of it.

    Attributes:
        mesh: axes ``process``, ``data`` and ``fsdp``; None for one device, where everything stays as it is.
    """

    mesh: Mesh | None = None

    @staticmethod
    def of(count: int, fsdp: int = 1) -> "Devices":
        """So many devices of each process.

        Args:
            count: devices; 0 for all.
            fsdp: neighbours that hold a state together.

        Raises:
            ValueError: there are not so many, or ``fsdp`` does not divide them.
        """
        there = len(jax.local_devices())
        if count > there:
            raise ValueError(f"devices = {count}: there are {there} here; 0 takes all")
        count = count or there
        if count % fsdp:
            raise ValueError(f"fsdp = {fsdp}: must divide the {count} devices of a process")
        chosen = [d for i in range(jax.process_count()) for d in jax.local_devices(i)[:count]]
        if len(chosen) == 1:
            return Devices()
        shape = jax.process_count(), count // fsdp, fsdp
        return Devices(Mesh(np.array(chosen).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3))

    @property
    def count(self) -> int:
        """Devices of all processes."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def count_here(self) -> int:
        """Devices of this process."""
        return 1 if self.mesh is None else len(self.mesh.local_devices)

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that the devices cannot share evenly.

        Raises:
            ValueError: says the nearest sizes.
        """
        if batch_size % self.count:
            below = batch_size // self.count * self.count
            sizes = f"{below} or {below + self.count}" if below else f"{self.count}"
            raise ValueError(
                f"batch_size = {batch_size}: must be a multiple of the {self.count} devices that share each "
                f"batch: {sizes}; or take fewer by devices"
            )

    def replicate(self, tree: T) -> T:
        """The same arrays whole on every device; all processes give the same."""
        return self._placed(tree, lambda leaf: PartitionSpec())

    def place_state(self, tree: T) -> T:
        """A state on the devices; all processes give the same.

        It may share memory with what was given: whoever gives its arrays away copies them before.
        """
        fsdp = 1 if self.mesh is None else self.mesh.shape["fsdp"]
        return self._placed(tree, lambda leaf: _state_spec(leaf, fsdp))

    def share(self, tree: T) -> T:
        """Arrays ``[batch, ...]`` divided among the devices; each process gives its own part of the batch."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(AXES))
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function that knows its devices."""
        return function if self.mesh is None else _OnMesh(function, self.mesh)

    def _placed(self, tree: T, spec: Callable[[Any], PartitionSpec]) -> T:
        if self.mesh is None:
            return tree
        mesh = self.mesh

        def place(leaf: Any) -> Any:
            sharding = NamedSharding(mesh, spec(leaf))
            if jax.process_count() == 1 or getattr(leaf, "sharding", None) == sharding:
                return jax.device_put(leaf, sharding)
            if _is_key(leaf):
                data = place(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            values = gathered(leaf)
            return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

        return jax.tree.map(place, tree)


ONE_DEVICE = Devices()
"""Everything stays where it is."""


class _OnMesh:
    def __init__(self, function: Any, mesh: Mesh):
        self._function, self._mesh = function, mesh

    def __call__(self, *arguments: Any) -> Any:
        with jax.set_mesh(self._mesh):
            return self._function(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def share_batch(batch: T) -> T:
    """In a function that is being compiled: each device makes and holds its part of the samples.

    Without a mesh of these axes (see `Devices.run`) nothing happens.
    """
    known = jax.sharding.get_abstract_mesh().axis_names == AXES
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(AXES)) if known else batch


def keep_state(state: T) -> T:
    """Likewise: the state comes out as `Devices.place_state` puts it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return state

    def keep(leaf: Any) -> Any:
        if _is_key(leaf):  # lies as it did, where a constraint would describe that in other words
            return leaf
        return jax.lax.with_sharding_constraint(leaf, _state_spec(leaf, mesh.shape["fsdp"]))

    return jax.tree.map(keep, state)


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _state_spec(leaf: Any, fsdp: int) -> PartitionSpec:
    """Kernels of convolutions, and what the optimizer has of them, are divided by their outputs.

    XLA gathers them where they are used. It would divide the work of smaller layers instead, and send
    features around.
    """
    divided = fsdp > 1 and len(leaf.shape) == 4 and leaf.shape[-1] % fsdp == 0
    return PartitionSpec(None, None, None, "fsdp") if divided else PartitionSpec()
