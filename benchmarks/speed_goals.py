"""Goals of the speed of things, and whether they are met."""

from typing import Any


def goal(what: str, measured: dict[str, float], sense: str, limit: float) -> dict[str, Any]:
    """A row of the table of goals.

    Args:
      what: what was measured.
      measured: median and quartiles.
      sense: ``"<="`` or ``">="``.
      limit: what the median is held to.
    """
    value = measured["median"]
    met = value <= limit if sense == "<=" else value >= limit
    return {"what": what, "measured": measured, "sense": sense, "limit": limit, "met": bool(met)}
