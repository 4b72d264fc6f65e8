"""A trained sampler of one target: what it gives, and how it is kept on disk."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from consistent_samplers import checkpoint, registry
from consistent_samplers.algorithms import Algorithm, SamplerState
from consistent_samplers.bases import Base
from consistent_samplers.bracket import Bracket
from consistent_samplers.corrections import Chains, Reweighted, reweight, reweight_chains
from consistent_samplers.diagnostics import (
    LEVELS,
    REMEDIES,
    ExplorationCheck,
    Verdict,
    chains_verdict,
    informed,
    verdict,
)
from consistent_samplers.estimate import Evidence, evidence
from consistent_samplers.recipe.bracketing import bracketed
from consistent_samplers.recipe.route import ASKED_FOR, Route
from consistent_samplers.sampler import Sampler, method_of_bound
from consistent_samplers.streaming import CHUNK_SIZE, stream_evidence
from consistent_samplers.targets import Target, evaluation
from consistent_samplers.types import Bound, Draws, LogDensityFn, Method, PRNGKey

KIND = "trained sampler"
"""What a folder that keeps one says of itself."""

NUM_COMPARED = 8
"""Points at which a target is compared with the one that a sampler was trained on."""

_UNSET: Any = object()
# Seconds to wait for another process that saves to the same folder.
_WAIT = 10.0
# Where a full calibration fell short, so many times its iterations are recommended.
_FURTHER = 4


@dataclasses.dataclass(frozen=True)
class TrainedSampler:
    """A trained sampler of one target.

    Attributes:
      target: what it samples, and weighs draws for.
      one_step: the sampler whose single step of the map was calibrated, or the base alone.
      many_steps: the distilled sampler, for any number of steps; the same network untrained where
        nothing was distilled, or the map before Newton's steps.
      stages: evidence after each stage, on the same number of draws, all at one step: ``"base"``,
        ``"distilled"`` where that was asked for, ``"calibrated"``, and ``"laplace"`` where members
        are placed by Newton's steps.
      histories: training history of the stages after the base, as far as they went.
      training_seconds: wall time of `train_sampler`, compilation included.
      exploration: what an independent look for modes found, or None without exploration.
      route: how far training went and why, or None of one made by hand.
      warm_started: whether training went on from a sampler of another target.
      chains: draws of chains in the latent space of `one_step`, where its weights are not to be
        used or ``effort="chains"`` asked for them; else None.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> target, base = cs.targets.gaussian(jnp.zeros(1), jnp.ones(1)), cs.bases.standard_normal(1)
      >>> algorithm = cs.osds(target, base=base, max_steps=1, hidden=(8,), guidance=None)
      >>> state = algorithm.init(jax.random.key(0))
      >>> trained = cs.TrainedSampler.of(algorithm, state)  # see `train_sampler`
      >>> draws = trained.sample(jax.random.key(1), 100)
      >>> draws.position.shape, draws.log_weight.shape, draws.bound
      ((100, 1), (100,), 'lower-if-injective')
      >>> evidence = trained.evidence(jax.random.key(2), 100)
      >>> abs(float(evidence.log_z) - target.log_z) < 1e-3  # base and target agree
      True
    """

    target: Target
    one_step: Sampler
    many_steps: Sampler
    stages: dict[str, Evidence] = dataclasses.field(default_factory=dict)
    histories: dict[str, Any] = dataclasses.field(default_factory=dict)
    training_seconds: float = 0.0
    exploration: ExplorationCheck | None = None
    route: Route | None = None
    warm_started: bool = False
    chains: Chains | None = None

    @classmethod
    def of(cls, algorithm: Algorithm, state: SamplerState) -> "TrainedSampler":
        """The trained sampler of an algorithm's state, to draw, weigh and save.

        Args:
          algorithm: any algorithm.
          state: its state.
        """
        sampler = algorithm.sampler(state)
        return cls(algorithm.target, sampler, sampler)

    @property
    def base(self) -> Base:
        """The base that was fitted to the target."""
        base = self.many_steps.base
        return getattr(base, "own", base)

    @property
    def unguided(self) -> Sampler:
        """`one_step`; where that takes the density to draw, `many_steps` if that does not."""
        guided = self.one_step.control.guided and not self.many_steps.control.guided
        return self.many_steps if guided else self.one_step

    @property
    def default_steps(self) -> int:
        """Steps of the draws to go by: one of the calibrated map, or all of paths without a map."""
        return 1 if "map" in self.one_step.methods else self.many_steps.default_steps

    def sampler_for(self, num_steps: int = 1, method: Method | None = None) -> Sampler:
        """The sampler that draws in ``num_steps`` steps: the calibrated one for a single map."""
        method = self.one_step.methods[0] if method is None else method
        return self.one_step if num_steps == 1 and method == "map" else self.many_steps

    def sample(
        self,
        rng_key: PRNGKey,
        num_samples: int,
        num_steps: int = 1,
        *,
        method: Method | None = None,
        weights: bool = True,
        mesh: Mesh | None = None,
        bound: Bound | None = _UNSET,
    ) -> Draws:
        """``num_samples`` draws, in ``num_steps`` network evaluations each.

        Args:
          rng_key: key.
          num_samples: number of draws.
          num_steps: sampler steps, a power of two up to the ``max_steps`` that it was trained with.
            One step is calibrated on its exact likelihood, and usually the best.
          method: which transitions (see `types.Method`); the map if None.
          weights: without them a draw costs one network evaluation a step and nothing else.
          mesh: devices to spread the draws over; the draws are the same.
          bound: the earlier spelling of ``method``, which warns.

        Raises:
          ValueError: ``num_steps`` is not one the sampler was trained for, or ``method`` is not
            one that it has.
        """
        if bound is not _UNSET:
            method, weights = method_of_bound(bound, method)
        sampler = self.sampler_for(num_steps, method)
        return sampler.sample(
            rng_key, self.target, num_samples, num_steps, method=method, weights=weights, mesh=mesh
        )

    def evidence(
        self,
        rng_key: PRNGKey,
        num_samples: int = 10_000,
        num_steps: int = 1,
        *,
        method: Method | None = None,
        mesh: Mesh | None = None,
        bound: Bound | None = _UNSET,
    ) -> Evidence:
        """ELBO and log Z with their standard errors from fresh draws.

        ``method="path"`` uses the stochastic path of `many_steps`: usually looser, but a bound by
        construction.
        """
        if bound is not _UNSET:
            method, _ = method_of_bound(bound, method)

        def sample(rng_key: PRNGKey, num_samples: int) -> Draws:
            return self.sample(rng_key, num_samples, num_steps, method=method, mesh=mesh)

        if isinstance(num_samples, int | np.integer) and num_samples > CHUNK_SIZE:
            return informed(stream_evidence(rng_key, sample, int(num_samples)), self.exploration)
        return informed(evidence(sample(rng_key, num_samples)), self.exploration)

    def reweight(
        self,
        log_density: LogDensityFn | Target,
        rng_key: PRNGKey | None = None,
        num_samples: int = 10_000,
    ) -> Reweighted:
        """The sampler's draws under another density, with its log Z and a verdict.

        The draws are those of the chains where these are what to go by (`concluded`), all of them;
        else one-step draws. The verdict is no better than the one on them for their own target.

        Args:
          log_density: ``[dim] -> []``, or a target; its support may be smaller.
          rng_key: key of the one-step draws; key 0 if None.
          num_samples: number of one-step draws.

        Raises:
          ValueError: as of `corrections.reweight`.
        """
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        target = log_density
        if not isinstance(target, Target):
            target = Target(target, self.target.dim, "the new density", sites=self.target.sites)
        stages, num = list(self.stages.values()), self.default_steps
        own = stages[-1] if stages else self.evidence(rng_key, num_steps=num)
        chains, _, judged = self.concluded(own)
        if chains is not None:
            return reweight_chains(chains, judged, self.target, target)
        own_draws = self.sampler_for(num)
        return reweight(
            rng_key, own_draws, target, num_samples, num, judged=judged, guide=self.target
        )

    def bracket(self, rng_key: PRNGKey, num_samples: int = 10_000) -> Bracket:
        """Log Z from both sides, and the optimal bridge in between, in nats.

        Draws of the target are those of `chains`, run here where there are none
        (`recipe.with_chains`); both bounds are of the map that the chains moved in, or where that
        leaves them more than a twentieth of a nat apart, of draws half of which are from a Gaussian
        fitted to the chains, if these are closer. Where the chains are not to be used, log Z and
        both bounds are those of the one-step weights (of stochastic paths without a map those of
        all steps), without one above if these are not to be used either, and the note says why.
        ``level`` is the verdict on the chains, or there on the weights.

        Args:
          rng_key: key.
          num_samples: draws of the sampler, four at least.

        Raises:
          TypeError: ``rng_key`` is not a single key.
          ValueError: fewer draws, or none of the sampler has a weight.
        """
        return bracketed(rng_key, self, num_samples)

    def verdict(self, evidence: Evidence) -> Verdict:
        """What some evidence is worth, the look for modes included, and what to try."""
        return verdict(evidence, self.exploration, remedies=self._remedies())

    def chains_verdict(self, rng_key: PRNGKey | None = None) -> Verdict:
        """What the draws of the chains are worth.

        Args:
          rng_key: key of the one-step draws that they are held against, where there are no stages
            to take them from; ``jax.random.key(0)`` if None.

        Raises:
          ValueError: no chains were run.
        """
        if self.chains is None:
            raise ValueError("There are no chains yet: run cs.with_chains(rng_key, trained).")
        if self.stages:
            return self._chains_verdict(list(self.stages.values())[-1])
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        return self._chains_verdict(self.evidence(rng_key))

    def _chains_verdict(self, one_step: Evidence) -> Verdict:
        found = self.chains
        assert found is not None
        return chains_verdict(
            found.mixing, found.log_z, one_step, found.exploration, found.unvisited
        )

    def concluded(self, evidence: Evidence) -> tuple[Chains | None, Evidence, Verdict]:
        """What to go by: chains or one-step draws, log Z and the verdict, of some evidence.

        The chains (None without), if they were asked for or are worth no less than the one-step
        draws; log Z and its standard error are then the bridge's, and the verdict speaks of both.
        All else of the evidence stays one step's.
        """
        own, chains = self.verdict(evidence), self.chains
        if chains is None:
            return None, evidence, own
        stages = list(self.stages.values())
        theirs = self._chains_verdict(stages[-1] if stages else evidence)
        asked_for = self.route and self.route.reason == ASKED_FOR
        if not asked_for and LEVELS.index(theirs.level) > LEVELS.index(own.level):
            return None, evidence, own
        said = own.findings.splitlines()[0]
        words = f"{theirs.words}\nlog Z of one step alone {float(evidence.log_z):.3f}: {said}"
        log_z, stderr = (jnp.asarray(part, evidence.log_z.dtype) for part in chains.log_z)
        found = dataclasses.replace(evidence, log_z=log_z, log_z_stderr=stderr)
        return chains, found, Verdict(theirs.level, words)

    def _remedies(self) -> dict[str, str]:
        """What can be done about this sampler's findings: calls that work on it."""
        remedies = dict(REMEDIES)
        if self.route is not None and self.route.name in ("full", "chains"):
            num = _FURTHER * len(getattr(self.histories.get("calibrated"), "loss", ()))
            remedies["longer"] = f"train with num_calibration_iterations={num or _FURTHER * 1_500}"
            if self.chains is None:
                remedies["longer"] += ", or go on with cs.with_chains(rng_key, trained)"
        if "map" not in self.one_step.methods:
            del remedies["map"]
        if self.one_step.control.injective:
            del remedies["injective"]
        return remedies

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keeps the sampler in a folder, in place of one that was kept there before.

        Everything but the target, which is code: see `load`. JSON and msgpack, no pickle. A base or
        a network of one's own is kept if its class is registered (`cs.register_base`,
        `cs.register_network`).

        Args:
          path: the folder; made if it does not exist.

        Raises:
          CheckpointError: the folder cannot be written to, or another process trains in it.
          TypeError: a base or a network whose class is not registered.
        """
        compared = self.base.sample(jax.random.key(0), NUM_COMPARED)
        kept = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "target"
        }
        kept["compared"] = (compared, evaluation.values(self.target.log_density, compared))
        described, arrays = registry.encode(kept)
        header = {"target": self.target.name, "dim": self.target.dim, "sampler": described}
        numbered = {str(i): np.asarray(array) for i, array in enumerate(arrays)}
        with checkpoint.reserved(path, wait_seconds=_WAIT):
            checkpoint.write(path, KIND, header, numbered)
