"""What answers are held against: kept truths, and the outcomes of a comparison."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import case
from benchmarks.report import Row

OUTCOMES = ("right", "flagged", "cried wolf", "silently wrong", "crash", "no truth")
"""Right, and to be used; wrong, and said not to be used; right, and said not to be used; ..."""


def kept(benchmark: str, name: str, compute: Callable[[], Row]) -> Row:
    """The truth of a case, from the results' BENCHMARK-references.jsonl, or computed."""
    path = case.RESULTS / f"{benchmark}-references.jsonl"
    truths = case.read(path)
    found = next((row for row in truths if row["target"] == name), None)
    if found is None:
        found = {"target": name} | compute()
        case.write(path, [*truths, found])
    return found


def outcome(wrong: bool, used: bool) -> str:
    """What an answer is, by whether it is wrong and whether its verdict lets it be used."""
    return {
        (False, True): "right",
        (False, False): "cried wolf",
        (True, True): "silently wrong",
        (True, False): "flagged",
    }[wrong, used]


def counts(rows: Sequence[Row]) -> dict[str, Any]:
    """How many rows have each outcome (spaces as underscores), and all of it in words."""
    found = [row["outcome"] for row in rows if "outcome" in row]
    number = {kind: found.count(kind) for kind in OUTCOMES}
    words = ", ".join(f"{kind}: {num}" for kind, num in number.items()) + f" of {len(found)}"
    share = number["cried wolf"] / max(number["right"] + number["cried wolf"], 1)
    named = {kind.replace(" ", "_"): num for kind, num in number.items()}
    return named | {"counts": words, "cried_share": 100.0 * share}
