"""Batches spread over the devices of a mesh, parameters on each of them.

What is computed for each draw depends on its key alone, so that one device and eight give the same
to rounding. Meshes may span several hosts (``jax.distributed``).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from consistent_samplers.types import ArrayTree


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``"batch"``, over ``devices``: all devices of all hosts if None.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.sharding.data_mesh().axis_names
      ('batch',)
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)


def num_devices(mesh: Mesh) -> int:
    """Number of a mesh's devices.

    Example:
      >>> import jax, consistent_samplers as cs
      >>> cs.sharding.num_devices(cs.sharding.data_mesh()) == jax.device_count()
      True
    """
    return mesh.size


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """A context in which `shard_batch` spreads batches over a mesh; without one, nothing changes.

    Raises:
      TypeError: ``mesh`` is neither a mesh nor None.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> with cs.sharding.on_mesh(cs.sharding.data_mesh()):
      ...     mean = jax.jit(lambda x: cs.sharding.shard_batch(x).mean())(jnp.ones((8, 2)))
    """
    if mesh is None:
        yield
        return
    with jax.set_mesh(_automatic(mesh)):
        yield


def shard_batch(batch: ArrayTree) -> ArrayTree:
    """The batch with its leading axes spread over the devices of the mesh in use.

    Where the number of devices does not divide an axis, each device computes all of it. For code
    under ``jax.jit``: the compiler then splits what follows, and sums what is shared.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> jax.jit(cs.sharding.shard_batch)(jnp.ones((8, 2))).shape  # as it is, without a mesh
      (8, 2)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch

    def spread(x: jax.Array) -> jax.Array:
        if x.ndim == 0 or x.shape[0] % mesh.size:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))

    return jax.tree.map(spread, batch)


def share(tree: ArrayTree) -> ArrayTree:
    """The same arrays on every device of the mesh in use, for results under ``jax.jit``.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> jax.jit(cs.sharding.share)(jnp.ones(3)).shape  # as it is, without a mesh
      (3,)
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def map_over_mesh(function: Callable[..., Any], mesh: Mesh, num_shared: int) -> Callable[..., Any]:
    """The function of ``num_shared`` shared arguments and a batch, each device taking its part.

    For functions ``(*shared, batch) -> result`` that treat every entry of the batch by itself, the
    leading axes of batch and result alike.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> times = cs.sharding.map_over_mesh(lambda scale, x: scale * x, cs.sharding.data_mesh(), 1)
      >>> float(times(2.0, jnp.ones(16)).sum())
      32.0
    """
    spread = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        function,
        mesh=_automatic(mesh),
        in_specs=(*(PartitionSpec(),) * num_shared, spread),
        out_specs=spread,
        # Constants inside (a scan's start, the basis of a Jacobian) need not say how they vary.
        check_vma=False,
    )


def replicate(tree: ArrayTree, mesh: Mesh) -> ArrayTree:
    """The same arrays on every device of a mesh, those bound to one device included.

    What is no array of JAX stays as it is: compiled functions place it themselves.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> cs.sharding.replicate({"w": jnp.ones(2)}, cs.sharding.data_mesh())["w"].tolist()
      [1.0, 1.0]
    """
    everywhere = NamedSharding(_automatic(mesh), PartitionSpec())

    def placed(leaf: Any) -> Any:
        # One that several hosts hold is where it should be.
        if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # JAX takes no typed key to several hosts, but its data.
            data = jax.device_put(jax.random.key_data(leaf), everywhere)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, everywhere)

    return jax.tree.map(placed, tree)


def spans_hosts(mesh: Mesh) -> bool:
    """Whether a mesh has devices of several processes.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.sharding.spans_hosts(cs.sharding.data_mesh())
      False
    """
    check_mesh(mesh)
    return len({device.process_index for device in mesh.devices.flat}) > 1


def wait_for_hosts(name: str) -> None:
    """Returns when every process has come to the place of that name.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.sharding.wait_for_hosts("here")  # alone: at once
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_mesh(mesh: Any) -> None:
    """Raises a TypeError unless an argument is a mesh.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.sharding.check_mesh(cs.sharding.data_mesh())
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            "mesh must be a jax.sharding.Mesh, such as consistent_samplers.sharding.data_mesh(), "
            f"got {type(mesh).__name__}."
        )


def _automatic(mesh: Mesh) -> Mesh:
    """The same devices with axes that the compiler may split along as it sees fit."""
    check_mesh(mesh)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
