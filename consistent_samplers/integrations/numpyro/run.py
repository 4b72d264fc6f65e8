"""The draws of one run: corrected by their weights, judged, in a table and as ArviZ takes them."""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import Predictive
from numpyro.infer.util import log_likelihood

from consistent_samplers import corrections, diagnostics
from consistent_samplers.bases.iterating import folded
from consistent_samplers.estimate import checked_log_weight, evidence
from consistent_samplers.integrations.numpyro.checking import innermost, layers
from consistent_samplers.integrations.numpyro.model import FlatModel, Samples
from consistent_samplers.integrations.numpyro.table import Columns, chosen, label, table, wrapped
from consistent_samplers.pareto import pareto_smooth
from consistent_samplers.recipe import TrainedSampler
from consistent_samplers.types import Array, Draws, PRNGKey

MIN_RESAMPLED_EFFECTIVE = 10
"""Effective draws below which resampling would only repeat a handful of points."""

MAX_OVERSAMPLING = 10
"""Candidates drawn for resampling, at most, in units of ``num_samples``."""

# Share of effective draws from which on they are resampled from as many candidates.
_NEARLY_ALL = 0.98
_MAX_NAMED = 6  # sites of which quantiles are not to be relied on
# Floats of candidate positions held at once (256 MiB).
_MAX_CANDIDATE_FLOATS = 2**26


@dataclasses.dataclass
class Run:
    """Weighted draws of a model's trained sampler, and whether to correct them by their weights."""

    rng_key: PRNGKey
    model: FlatModel
    trained: TrainedSampler
    num_samples: int
    num_steps: int

    def __post_init__(self) -> None:
        self._of_chains: Samples | None = None
        self.draws = self._block(0)
        found = diagnostics.informed(evidence(self.draws), self.trained.exploration)
        self.chains, self.evidence, self.verdict = self.trained.concluded(found)
        # A Pareto-smoothed resample can be trusted, and is not a handful of points.
        enough = float(found.ess) * found.num_samples >= MIN_RESAMPLED_EFFECTIVE
        reliable = enough and diagnostics.weights_are_reliable(found)
        self.reweighted = reliable and self.chains is None
        self._samples: dict[bool, tuple[Samples, Array]] = {}
        self.distrusted: tuple[str, ...] = ()
        if self.reweighted and not diagnostics.standard_error_is_reliable(self.evidence):
            self._judge_sites()

    def chain_samples(self) -> Samples:
        """Constrained samples of the chains, one after the other."""
        if self._of_chains is None:
            assert self.chains is not None
            flat = self.chains.position.reshape(-1, self.chains.position.shape[-1])
            self._of_chains = self.model.constrain(flat)
        return self._of_chains

    def _judge_sites(self) -> None:
        """Which sites the weights' tail may change goes into the verdict."""
        latent = dict(self.model.functions.sites)
        samples, log_weight = self.samples(resampled=False)
        sites = {name: np.asarray(samples[name]) for name in samples if name in latent}
        names = [label(name, i) for name, x in sites.items() for i in np.ndindex(x.shape[1:])]
        values = np.concatenate([x.reshape(len(x), -1) for x in sites.values()], axis=1)
        # Twice, as the standard error of log Z takes it.
        hidden = 2.0 * float(self.evidence.unseen or 0.0)
        shifts = diagnostics.quantile_shifts(values, log_weight, hidden)
        order = np.argsort(-shifts)
        named = [names[i] for i in order if shifts[i] > diagnostics.MAX_SHIFT]
        self.distrusted = tuple(named)
        if len(named) == len(names):
            line = (
                "No quantiles are to be relied on: what the weights' tail may hide would move each "
                f"by {shifts.min():.2g} standard deviations or more."
            )
            found = self.verdict.with_finding(line, first=True)
            self.verdict = found._replace(level="not to be used")
            return
        kept = f"by {shifts[order[len(named) :]].max():.2g} standard deviations at most"
        line = f"Quantiles of every site would move {kept} if that came."
        if named:
            shown = ", ".join(named[:_MAX_NAMED]) + (", ..." if len(named) > _MAX_NAMED else "")
            others = f"Those of the {len(names) - len(named)} others would move {kept}."
            line = f"Quantiles not to be relied on: {shown}. {others}"
        self.verdict = self.verdict.with_finding(line)

    def samples(self, resampled: bool) -> tuple[Samples, Array]:
        """Constrained samples, made when first asked for, and log weights of their draws."""
        if resampled not in self._samples:
            position, log_weight = self.draws.position, checked_log_weight(self.draws)
            if resampled:
                position, log_weight = self._resample()
            self._samples[resampled] = self.model.constrain(position), log_weight
        return self._samples[resampled]

    def summary(
        self, prob: float, exclude_deterministic: bool, var_names: str | Sequence[str] | None
    ) -> str:
        """The table, and below it what the draws are worth."""
        latent = dict(self.model.functions.sites)
        drawn = self.samples(self.reweighted)[0] if self.chains is None else self.chain_samples()
        samples = {
            name: np.asarray(value)
            for name, value in drawn.items()
            if name in latent or not exclude_deterministic
        }
        if var_names is not None:
            samples = {name: samples[name] for name in chosen(samples, var_names)}
        num_blocks = self._num_blocks() if self.reweighted else 1
        num_effective = self.num_samples * min(1.0, num_blocks * float(self.evidence.ess))
        columns: Columns = {"n_eff": {name: num_effective for name in samples}}
        if self.chains is not None:
            columns = _mixing_of(_in_chains(samples, num_chains=len(self.chains.position)))
            how = f"of {len(self.chains.position)} chains: {self.chains}"
        elif self.reweighted:
            how = f"reweighted: resampled from {num_blocks * self.num_samples} weighted draws"
        else:
            how = "not reweighted: the weights are too uneven, so they follow the sampler itself"
        shorten = var_names is None
        found = table(samples, self._widened(prob), columns, shorten=shorten)
        lines = [str(self.evidence)]
        lines.append(f"draws     {how}")
        if self._widened(prob) > prob:
            lines.append(
                f"intervals hold {100 * self._widened(prob):.1f} % of the draws, for "
                f"{100 * prob:.0f} % with what the weights' tail may hide"
            )
        if self.trained.route is not None:
            lines.append(f"route     {self.trained.route}")
        if self.trained.warm_started:
            lines.append("training  went on from a sampler of other data")
        said = wrapped("\n".join([*lines, "", f"verdict   {self.verdict}"]))
        return f"{found}\n{said}"

    def _widened(self, prob: float) -> float:
        """Mass of the interval to print: of numbers that are usable, with their error added."""
        if self.verdict.level != "usable":
            return prob
        hidden = 0.0 if self.evidence.unseen is None else float(self.evidence.unseen)
        effective = float(self.evidence.ess) * self.evidence.num_samples
        if self.chains is not None:
            seen, effective = self.chains.exploration, max(self.chains.mixing.tail, 1.0)
            hidden = 0.0 if seen is None else 0.5 * float(np.nan_to_num(seen.hidden))
        error = 2.0 * math.hypot(math.sqrt(prob * (1.0 - prob) / effective), hidden)
        return min(prob + error, 0.5 * (1.0 + prob))

    def diagnostics(self) -> dict[str, Any]:
        """What the draws are worth, as plain numbers."""
        trained, worth = self.trained, self.evidence
        found = None if self.chains is None else self.chains.mixing
        mixed = {name: getattr(found, name, None) for name in diagnostics.Mixing._fields}
        names = ("ess", "pareto_k", "folded", "round_trip_error")
        values = {name: getattr(worth, name) for name in names}
        return {name: None if x is None else float(x) for name, x in values.items()} | {
            "bound": worth.bound,
            "reweighted": self.reweighted,
            "level": self.verdict.level,
            "verdict": self.verdict.words,
            "distrusted": list(self.distrusted),
            **mixed,
            "training_seconds": trained.training_seconds,
            "stage_elbos": {name: float(stage.elbo) for name, stage in trained.stages.items()},
            "route": None if trained.route is None else trained.route.name,
            "warm_started": trained.warm_started,
        }

    def observed(self) -> dict[str, np.ndarray]:
        """Values of the observed sites that count: those of a mask are flat, others left out."""
        return {name: _counted(site) for name, site in self._observed_sites().items()}

    def factors(self) -> tuple[str, ...]:
        """Sites of ``numpyro.factor``, or that are one in effect: terms that hold no data."""
        observed = (item for item in self._sites().items() if item[1]["is_observed"])
        return tuple(name for name, site in observed if _is_factor(site))

    def scaled(self) -> tuple[str, ...]:
        """Sites whose density is taken to a power, by ``numpyro.handlers.scale``."""
        return tuple(
            name
            for name, site in self._sites().items()
            if site.get("scale") is not None and np.any(np.asarray(site["scale"]) != 1.0)
        )

    def improper(self) -> tuple[str, ...]:
        """Latent sites whose priors have no finite integral."""
        latent = (item for item in self._sites().items() if not item[1]["is_observed"])
        return tuple(name for name, site in latent if _is_improper(name, site["fn"]))

    def _observed_sites(self) -> dict[str, Any]:
        """Observed sites, less those of a ``numpyro.factor``."""
        sites = self._sites().items()
        return {n: site for n, site in sites if site["is_observed"] and not _is_factor(site)}

    def _substituted(self) -> Callable[..., Any]:
        """The model with the parameters that it was trained with."""
        return handlers.substitute(self.model.functions.model, data=self.model.data[1])

    def _sites(self) -> dict[str, Any]:
        """The model's sample sites at one draw: not every prior has draws of its own."""
        chained = self.chains is not None
        drawn = self.chain_samples() if chained else self.samples(self.reweighted)[0]
        at = {name: value[0] for name, value in drawn.items()}
        at_one = handlers.substitute(self._substituted(), data=at)
        args, kwargs = self.model.arguments
        trace = handlers.trace(handlers.seed(at_one, 0)).get_trace(*args, **kwargs)
        return {name: site for name, site in trace.items() if site["type"] == "sample"}

    def to_arviz(
        self, resampled: bool | None, predictive_key: PRNGKey, with_log_likelihood: bool
    ) -> Any:
        """Chains of sites, or one, their log weights, what the model says of its observed sites."""
        build, num_chains = _builder(), 1
        if resampled is None and self.chains is not None:
            num_chains, posterior = len(self.chains.position), self.chain_samples()
            stats = {"log_weight": self.chains.log_weight, "diverging": self.chains.diverging}
            stats = {name: x.reshape(-1) for name, x in stats.items()}
        else:
            posterior, log_weight = self.samples(bool(resampled))
            stats = {"log_weight": log_weight}
        in_chains = functools.partial(_in_chains, num_chains=num_chains)
        args, kwargs = self.model.arguments
        model = self._substituted()
        observed = {name: np.asarray(s["value"]) for name, s in self._observed_sites().items()}
        groups: dict[str, dict[str, Any]] = {
            "posterior": in_chains(posterior),
            "sample_stats": in_chains(stats),
        }
        if observed and with_log_likelihood:
            values = log_likelihood(model, posterior, *args, **kwargs)
            groups["log_likelihood"] = in_chains({name: values[name] for name in observed})
        if observed:
            free = handlers.uncondition(model)
            predict = Predictive(free, posterior, return_sites=list(observed))
            draws = predict(predictive_key, *args, **kwargs)
            groups["posterior_predictive"] = in_chains(draws)
            groups["observed_data"] = observed
        return build(groups)

    def _block(self, index: int) -> Draws:
        key = folded(self.rng_key, index)
        return self.trained.sample(key, self.num_samples, self.num_steps)

    def _num_blocks(self) -> int:
        """Blocks of ``num_samples`` candidates: twice as many effective ones as are asked for.

        One where nearly all draws are effective: none of them is then repeated often.
        """
        if float(self.evidence.ess) >= _NEARLY_ALL:
            return 1
        wanted = round(2.0 / max(float(self.evidence.ess), 1e-6))
        affordable = _MAX_CANDIDATE_FLOATS // self.draws.position.size
        return max(1, min(wanted, MAX_OVERSAMPLING, affordable))

    def _resample(self) -> tuple[Array, Array]:
        """Resampled positions from the run's own and more candidates, and their log weights."""
        blocks = [self.draws, *map(self._block, range(1, self._num_blocks()))]
        # On the host: joins and gathers of every length would each be compiled.
        position = np.concatenate([np.asarray(block.position) for block in blocks])
        log_weight = np.concatenate([np.asarray(checked_log_weight(block)) for block in blocks])
        key = folded(self.rng_key, MAX_OVERSAMPLING)
        smoothed, _ = pareto_smooth(jax.device_put(log_weight))
        index = np.asarray(corrections.systematic_indices(key, smoothed, self.num_samples))
        chosen: tuple[Array, Array] = jax.device_put((position[index], log_weight[index]))
        return chosen


def _mixing_of(chains: dict[str, np.ndarray]) -> Columns:
    """Effective draws and r-hat of each site of ``[num_chains, num_samples, ...]``."""
    return {
        "n_eff": {name: effective_sample_size(x) for name, x in chains.items()},
        "r_hat": {name: split_gelman_rubin(x) for name, x in chains.items()},
    }


def _is_factor(site: dict[str, Any]) -> bool:
    """Whether a site is observed in name only."""
    return type(innermost(site["fn"])).__name__ in ("Unit", "Delta")


def _counted(site: dict[str, Any]) -> np.ndarray:
    """The value of an observed site; where some of it is masked out, a vector of the rest."""
    value = np.asarray(site["value"])
    # A single value may stand for several.
    value = np.broadcast_to(value, np.broadcast_shapes(value.shape, site["fn"].shape()))
    counted = np.ones(value.shape, bool)
    for fn in layers(site["fn"]):
        if isinstance(fn, dist.MaskedDistribution):
            mask = np.asarray(fn._mask)
            counted &= mask.reshape(mask.shape + (1,) * fn.event_dim)
    return value if counted.all() else value[counted]


def _is_improper(name: str, fn: Any) -> bool:
    """Whether the prior of a latent site has no finite integral: masked out, it is flat.

    The mask of ``numpyro.sample(..., obs_mask=)`` says what is missing; there the prior is whole.
    """
    while fn is not None:
        masked = isinstance(fn, dist.MaskedDistribution) and not np.all(fn._mask)
        if isinstance(fn, dist.ImproperUniform) or (masked and not name.endswith("_unobserved")):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def _builder() -> Callable[[dict[str, dict[str, Any]]], Any]:
    """``from_dict`` of whichever ArviZ there is; ArviZ itself before the part it is made of."""
    try:
        arviz = importlib.import_module("arviz")
    except ImportError:
        try:
            arviz = importlib.import_module("arviz_base")
        except ImportError as error:
            raise ImportError(
                "to_arviz needs ArviZ: pip install arviz (0.22 or newer) or arviz-base."
            ) from error
    if hasattr(arviz, "InferenceData"):  # before ArviZ 1
        return lambda groups: arviz.from_dict(**groups)
    return lambda groups: arviz.from_dict(groups)


def _in_chains(values: dict[str, Any], *, num_chains: int) -> dict[str, np.ndarray]:
    """Arrays of draws, chain after chain, with an axis for the chains in front."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    shapes = {name: (num_chains, len(x) // num_chains, *x.shape[1:]) for name, x in arrays.items()}
    return {name: x.reshape(shapes[name]) for name, x in arrays.items()}
