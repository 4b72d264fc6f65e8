"""What the screen shows while it works: a line for each stage, and the time that its loop has left.

Loops deep inside a stage are counted without being told of it: they ask whether a stage is shown.
Nothing is shown where the standard error stream is neither a terminal nor a notebook's.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm

_Item = TypeVar("_Item")

_TIME_ALONE = "{desc} [{elapsed}]"
_IN_NOTEBOOK = any(parent.__module__ == "tqdm.notebook" for parent in tqdm.__mro__)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What runs; ``bar`` is None where nothing is shown, or where what runs has its own."""

    name: str
    bar: Any


_running: ContextVar[_Stage | None] = ContextVar("running", default=None)


def hidden(progress_bar: bool) -> bool | None:
    """Whether a bar is hidden, as ``tqdm(disable=...)`` takes it: None for all but a terminal."""
    # The stream of a notebook says that it is no terminal.
    return not progress_bar or (False if _IN_NOTEBOOK else None)


def label(name: str) -> str:
    """What to call a bar: the stage that runs, or ``name`` outside of one."""
    running = _running.get()
    return name if running is None else running.name


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """A context in which bars of training have the name of a stage."""
    token = _running.set(_Stage(name, None))
    try:
        yield
    finally:
        _running.reset(token)


@contextlib.contextmanager
def stage(name: str, *, progress_bar: bool) -> Iterator[None]:
    """A context with a line of its own: the stage's name, its time, and how far its loops are.

    Inside another stage it is a part of that one's line.
    """
    running = _running.get()
    if running is not None and running.bar is not None:
        yield
        return
    with tqdm(desc=name, bar_format=_TIME_ALONE, disable=hidden(progress_bar)) as bar:
        begin = getattr(bar, "start_t", None)
        token = _running.set(_Stage(name, None if bar.disable else bar))
        try:
            yield
        finally:
            _running.reset(token)
            if not bar.disable:
                bar.bar_format, bar.start_t = _TIME_ALONE, begin
                bar.set_description_str(name)


def counted(what: str, items: Iterable[_Item], total: int) -> Iterator[_Item]:
    """The items of a loop, which the line of the stage that runs counts, if there is one.

    Args:
      what: what the items are, in words.
      items: to go through; the loop may end before all of them.
      total: how many there usually are, for the time that is left.
    """
    running = _running.get()
    bar = None if running is None else running.bar
    if running is None or bar is None:
        yield from items
        return
    bar.bar_format = None
    bar.set_description_str(f"{running.name}: {what}", refresh=False)
    bar.reset(total=total)
    for item in items:
        yield item
        bar.update()
