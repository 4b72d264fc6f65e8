"""How an algorithm is built: base, network and optimiser, and the checks of its constructor."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consistent_samplers import bases
from consistent_samplers.algorithms.base import Algorithm
from consistent_samplers.algorithms.protocol import Adam, Objective
from consistent_samplers.bases import Base
from consistent_samplers.bases.base import as_pytree
from consistent_samplers.checks import check_choice, check_integer, check_widths
from consistent_samplers.maps import Control
from consistent_samplers.networks import Structured
from consistent_samplers.schedules import check_max_steps
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, ArrayTree, PRNGKey


def build(
    target: Target,
    objective: Objective,
    *,
    control: Control,
    optimizer: optax.GradientTransformation | None = None,
    extra: ArrayTree = (),
    name: str | None = None,
) -> Algorithm:
    """The algorithm of an objective.

    Args:
      target: what to sample.
      objective: what is minimised.
      control: what is trained.
      optimizer: any optax transformation; the objective's own `Adam` if None.
      extra: constants that the objective finds in `Now.extra`.
      name: for tables; the objective's if None.

    Raises:
      TypeError: the optimiser is none.
      ValueError: base and target differ in dimension, ``max_steps`` is not a power of two, or
        ``batch_size`` no positive integer.

    Example:
      >>> import consistent_samplers as cs
      >>> own = cs.osds(cs.targets.funnel(2), base=cs.bases.standard_normal(2), hidden=(8,))
      >>> cs.algorithms.build(own.target, own.objective, control=own.control).name
      'osds'
    """
    check_base(target, control.base)
    check_max_steps(objective.max_steps)
    check_integer("batch_size", objective.batch_size)
    chosen = choose_optimizer(objective, optimizer)
    return Algorithm(name or objective.name, target, control, objective, chosen, extra)


def choose_optimizer(objective: Objective, optimizer: Any) -> Any:
    """The optimiser that is given, or the objective's own."""
    is_optax = callable(getattr(optimizer, "update", None))
    if optimizer is not None and not (is_optax or isinstance(optimizer, Adam)):
        raise TypeError(
            "optimizer must be an optax transformation such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}."
        )
    return objective.optimizer() if optimizer is None else optimizer


def choose_base(target: Target, base: Base | None) -> Base:
    """The base of an algorithm: the one given, or what the recipe would fit to the target."""
    # From N(0, 1) a reverse KL would end in whatever mode it meets first, without a word.
    if base is None:
        return bases.fit(jax.random.key(0), target)
    check_base(target, base)
    return as_pytree(base)


def choose_network(
    network: Any, dim: int, default: Callable[[], Any], hidden: tuple[int, ...]
) -> Any:
    """The network of a control, by its kind or as it is given.

    It is ``"general"`` (what ``default`` makes), ``"structured"`` (`networks.Structured`, as many
    units as the widest hidden layer), or a linen module or anything else with ``init`` and
    ``apply``, called as (x [dim], t [], d []) -> [dim].
    """
    if isinstance(network, str):
        check_choice("network", network, ("general", "structured"))
        check_widths(hidden)
        return default() if network == "general" else Structured(dim, max(hidden))
    if not (callable(getattr(network, "init", None)) and callable(getattr(network, "apply", None))):
        raise TypeError(
            "network must be 'general', 'structured', a linen module, or anything with init and "
            f"apply (cs.networks.Network), got {type(network).__name__}."
        )
    return network


def check_control(control: Control) -> None:
    """Raises unless a network of the user's gives a control of the right shape."""

    def called(rng_key: PRNGKey, x: Array, t: Array) -> Array:
        component = control.base.draw_component(rng_key)
        return control.bind(control.init(rng_key), component, jnp.zeros_like)(x, t, 1.0 - t)

    dim = control.dim
    found = jax.eval_shape(called, jax.random.key(0), jnp.zeros(dim), jnp.zeros(()))
    if getattr(found, "shape", None) != (dim,):
        raise TypeError(
            f"A network maps (x [{dim}], t [], d []) to a control [{dim}], but "
            f"{type(control.network).__name__} to {list(getattr(found, 'shape', [type(found)]))}."
        )


def check_base(target: Target, base: Base) -> None:
    """Raises unless base and target live in the same space."""
    if base.dim != target.dim:
        raise ValueError(
            f"The base has dimension {base.dim} but target {target.name!r} has {target.dim}. "
            f"Build the base for this target, e.g. cs.bases.fit_gaussian(rng_key, target)."
        )


class Constructor:
    """An algorithm's constructor, ``(target, *, settings) -> Algorithm``, and its paper's preset.

    Attributes:
      paper: the same with the settings of the paper, ``(target, *, overrides) -> Algorithm``.

    Example:
      >>> import consistent_samplers as cs
      >>> cs.dis.paper(cs.targets.funnel(2)).objective.batch_size
      2048
    """

    def __init__(
        self,
        make: Callable[..., Algorithm],
        objective: type[Objective],
        paper: Callable[..., dict[str, Any]],
    ) -> None:
        self._make, self._paper, self._objective = make, paper, objective
        functools.update_wrapper(self, make)
        taken = inspect.signature(make).parameters
        own = [p for p in taken.values() if p.kind is not p.VAR_KEYWORD]
        settings = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
            for f in dataclasses.fields(objective)
            if f.name not in taken
        ]
        self.__signature__ = inspect.Signature([*own, *settings], return_annotation=Algorithm)

    def __call__(self, target: Target, **settings: Any) -> Algorithm:
        """Builds the algorithm with the defaults of this package."""
        return self._make(target, **self._checked(settings))

    def paper(self, target: Target, **overrides: Any) -> Algorithm:
        """The algorithm with the settings of its paper; the base is N(0, I) unless one is given."""
        overrides = self._checked(overrides)
        algorithm = self._make(target, **(self._paper(target, overrides) | overrides))
        return dataclasses.replace(algorithm, name=f"{algorithm.name}.paper")

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings, with Python's integers for NumPy's: some are written to files."""
        _, *known = self.__signature__.parameters
        if unknown := sorted(settings.keys() - set(known)):
            raise TypeError(
                f"cs.{self._objective.name} has no setting {unknown[0]!r}. It takes: "
                f"{', '.join(known)}."
            )
        return {k: int(v) if isinstance(v, np.integer) else v for k, v in settings.items()}
