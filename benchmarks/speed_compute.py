"""Speed of draws, weights and training iterations: ratios to the bare network's evaluations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

import consistent_samplers as cs
from benchmarks import timing
from benchmarks.speed_cases import (
    Case,
    Evaluations,
    Sizes,
    case,
    diagonal_base,
    full_base,
    mixed_base,
    plain_target,
    started,
)
from benchmarks.speed_goals import goal

_CHUNK = 16_384


def draws(sizes: Sizes) -> dict[str, Any]:
    """One-step draws without weights against the bare network on a batch of the same size.

    The bare network takes the batch at once, or in chunks: the faster of the two in each round.
    """
    names, num = sizes.draws
    rows, goals = [], []
    for name in names:
        sampler = case(name, sizes.hidden)
        seconds = timing.interleaved(
            {
                "draws": sampler.sampling(num, weights=False),
                "bare": sampler.bare(num),
                "bare_in_chunks": sampler.bare(num, _CHUNK),
            },
            sizes.rounds,
        )
        faster = list(map(min, seconds["bare"], seconds["bare_in_chunks"]))
        share = timing.ratio(faster, seconds["draws"])
        rows.append({"target": name, "dim": sampler.dim, "num": num, **_medians(seconds)})
        what = f"draws without weights, d = {sampler.dim}, batch {num:,}: throughput over the bare"
        goals.append(goal(f"{what} network's", share, ">=", 0.6))
    return {"rows": rows, "goals": goals}


def weights(sizes: Sizes) -> dict[str, Any]:
    """One-step draws with exact log-determinants against evaluations of the bare network.

    At two numbers of draws: the 256 round trips of a call are a fixed cost, which is spread over
    100,000 draws in the figures.
    """
    rows, goals = [], []

    def measure(sampler: Case, small: int, large: int, network: str, base: str) -> None:
        seconds = timing.interleaved(
            {
                "small": sampler.sampling(small),
                "large": sampler.sampling(large),
                "bare": sampler.bare(large),
            },
            sizes.rounds,
        )
        per_draw = [
            (b - a) / (large - small)
            for a, b in zip(seconds["small"], seconds["large"], strict=True)
        ]
        fixed = [max(a - small * p, 0.0) for a, p in zip(seconds["small"], per_draw, strict=True)]
        each = [p + f / 100_000 for p, f in zip(per_draw, fixed, strict=True)]
        bare = [b / large for b in seconds["bare"]]
        found = timing.ratio(each, bare)
        rows.append(
            {
                "network": network,
                "base": base,
                "dim": sampler.dim,
                "num": [small, large],
                "microseconds_a_draw": 1e6 * timing.spread(per_draw)["median"],
                "milliseconds_of_round_trips": 1e3 * timing.spread(fixed)["median"],
                "bare_microseconds": 1e6 * timing.spread(bare)["median"],
                "bare_evaluations_a_draw": found,
            }
        )
        print(f"  {network}, {base}, d = {sampler.dim}: {found['median']:.4g} bare evaluations")
        where = f"weighted draws, {network} network, {base}, d = {sampler.dim}"
        if network == "general":
            cost = timing.ratio(each, bare, 1.0 / (sampler.dim + 1))
            goals.append(goal(f"{where}: cost over d + 1 bare evaluations", cost, "<=", 1.5))
        else:
            goals.append(goal(f"{where}: cost in bare evaluations", found, "<=", 5.0))

    names, (small, large) = sizes.general
    for name in names:
        measure(case(name, sizes.hidden), small, large, "general", "full base")
    for dim, (small, large) in sizes.structured:
        bases = {"diagonal base": diagonal_base}
        if dim == sizes.structured[-1][0]:
            # What a full covariance adds to it.
            bases["full base"] = full_base
        for words, base in bases.items():
            sampler = case(plain_target(dim), sizes.hidden, "structured", base(dim))
            measure(sampler, small, large, "structured", words)
    return {"rows": rows, "goals": goals}


def training(sizes: Sizes) -> dict[str, Any]:
    """An iteration of the paper's OSDS against its evaluations of network and target gradient.

    Forward and pulled back to parameters and points: one a path and step of the simulation; one of
    the student's step, and one each for the tangents of its trace and of the Jacobian penalty.
    Forward only: two of the teacher's steps, two of the tangents of its traces. The bare function
    makes as many in batches of the same size, at given points, each batch pulled back at once: no
    path, no weights, no losses, no optimiser, and nothing is kept over the steps.
    """
    name, num_steps, batch = sizes.paper
    target = case(name, sizes.hidden).algorithm.target
    paper = cs.osds.paper(target, max_steps=num_steps, batch_size=batch, hidden=sizes.hidden)
    sampler = started(paper)
    needed = Evaluations(both=((num_steps, batch), (3, batch)), forward=((4, batch),))
    seconds, row = _iteration(sampler, needed, sizes.rounds)
    row |= {"what": f"osds.paper, N = {num_steps}, batch {batch}", "target": name}
    row["dim"] = sampler.dim
    cost = timing.ratio(seconds["iteration"], seconds["bare"])
    what = f"osds.paper, N = {num_steps}, batch {batch}, d = {sampler.dim}: an iteration over its"
    goals = [goal(f"{what} bare evaluations, forward and backward", cost, "<=", 1.6)]
    return {"rows": [row], "goals": goals}


def _iteration(
    sampler: Case, needed: Evaluations, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds and counts of an iteration and of its bare evaluations."""
    algorithm, state, key = sampler.algorithm, sampler.state, jax.random.key(5)
    step = jax.jit(algorithm.step)
    bare, points = needed.function(algorithm)
    seconds = timing.interleaved(
        {"iteration": lambda: step(key, state), "bare": lambda: bare(state.params, *points)}, rounds
    )
    row = {
        **_medians(seconds),
        "iteration": timing.counts(step, key, state),
        "bare": timing.counts(bare, state.params, *points),
    }
    return seconds, row


def scaling(sizes: Sizes) -> dict[str, Any]:
    """Cost against d, batch, steps and components, with the slope of each and its theory.

    The theory is that of the dominant term: draws go through the base's full factor, O(d²), where
    the base is full; weights of a general network take d + 1 evaluations of O(d) and an elimination
    of O(d³); a structured one's O(d) alone. In all else costs are proportional, or less.
    """
    lines: list[dict[str, Any]] = []
    rounds = max(2, sizes.rounds // 2)

    def add(what: str, against: str, theory: float, xs: Sequence[int], build: Any) -> None:
        functions = {str(x): build(x) for x in xs}
        seconds = timing.interleaved(functions, rounds)
        medians = [timing.spread(seconds[str(x)])["median"] for x in xs]
        lines.append(
            {
                "what": what,
                "against": against,
                "x": list(xs),
                "seconds": medians,
                "slope": timing.slope(xs, medians),
                "theory": theory,
            }
        )
        print(f"  {what} against {against}: slope {lines[-1]['slope']:.2f}", flush=True)

    def plain(dim: int, network: Any, base: Any = None, max_steps: int = 16) -> Case:
        return case(plain_target(dim), sizes.hidden, network, base, max_steps)

    def iteration(sampler: Case) -> Callable[[], Any]:
        step, key = jax.jit(sampler.algorithm.step), jax.random.key(6)
        return lambda: step(key, sampler.state)

    def osds(dim: int, network: Any, max_steps: int, batch: int) -> Callable[[], Any]:
        # The recipe's, but for its batch.
        built = cs.osds(
            plain_target(dim),
            base=full_base(dim),
            max_steps=max_steps,
            batch_size=batch,
            hidden=sizes.hidden,
            guidance=None,
            network=network,
            num_consistency_samples=batch // 2,
        )
        return iteration(started(built))

    num, dims = sizes.num_draws, sizes.dims
    small = [d for d in dims if d <= 100]
    middle = small[len(small) // 2]
    many = [d for d in dims if d > 26] or dims
    few = small[min(1, len(small) - 1)]
    several = plain(middle, "general", max_steps=max(sizes.steps))
    steps, batches = sizes.steps, sizes.batches
    up_to_16 = [k for k in steps if k <= 16]
    long = [k for k in steps if k > 1] if len(steps) > 2 else steps

    def on_diagonal(d: int) -> Case:
        return plain(d, "structured", diagonal_base(d))

    def mixed(c: int) -> Case:
        return plain(few, "general", mixed_base(few, c))

    def general(d: int) -> Case:
        return plain(d, "general")

    own, weighted, train = "draws, general", "weighted draws, general", "OSDS iteration, general"
    add(f"{own}, full base", "d", 2.0, dims, lambda d: general(d).sampling(num, False))
    add("bare network, general", "d", 1.0, dims, lambda d: general(d).bare(num))
    add(weighted, "d", 3.0, small, lambda d: general(d).sampling(num))
    structured = "weighted draws, structured, diagonal base"
    add(structured, "d", 1.0, dims, lambda d: on_diagonal(d).sampling(num))
    add(train, "d", 3.0, small, lambda d: osds(d, "general", 4, 64))
    add("OSDS iteration, structured", "d", 2.0, many, lambda d: osds(d, "structured", 4, 16))
    add(own, "batch", 1.0, batches, lambda n: general(middle).sampling(n, False))
    add(weighted, "batch", 1.0, batches[:-1], lambda n: general(middle).sampling(n))
    add(train, "batch", 1.0, sizes.iteration_batches, lambda n: osds(middle, "general", 4, n))
    add(own, "steps", 1.0, steps, lambda k: several.sampling(num, False, k))
    add(weighted, "steps", 1.0, up_to_16, lambda k: several.sampling(num, True, k))
    add(train, "steps", 1.0, long, lambda k: osds(middle, "general", k, 64))
    add(own, "components", 1.0, sizes.components, lambda c: mixed(c).sampling(num, False))
    add(weighted, "components", 1.0, sizes.components, lambda c: mixed(c).sampling(num))
    goals = [
        goal(
            f"slope of {line['what']} against {line['against']}, theory {line['theory']:g}",
            dict.fromkeys(("median", "low", "high"), line["slope"]),
            "<=",
            line["theory"] + 0.2,
        )
        for line in lines
    ]
    settings = {"dim": middle, "components_dim": few, "draws": num}
    return {"rows": lines, "goals": goals, "settings": settings}


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {f"{name}_ms": 1e3 * timing.spread(s)["median"] for name, s in seconds.items()}
