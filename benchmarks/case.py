"""Cases, what is measured of them, and the one loop that measures them and keeps their rows."""

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report, Row

RESULTS = Path(__file__).parent / "results"
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What one measurement is of.

    Attributes:
      target: name of the density, the model or the part that is measured.
      method: what samples it; "" where there is one only.
      budget: what it may spend, in the benchmark's words; "" where it decides by itself.
      seed: of everything; -1 where each has its own.
      settings: other options of the command.
    """

    target: str
    method: str = ""
    budget: str = ""
    seed: int = 0
    settings: Settings = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A command of ``python -m benchmarks``.

    Attributes:
      name: of the command and, unless `file` gives another, of its results.
      names: ``settings -> names`` of what can be measured, in the order of the tables.
      measure: ``case -> rows``.
      report: tables, goals and figure.
      cases: ``(settings, rows) -> cases`` for the names in ``settings["names"]``; rows are those
        that are kept so far, to be looked at when a case is asked for. One a name and method, with
        the command's seed where it has one, if None.
      methods: of each name.
      options: of the command, beside names, output and keep: ``(default, help)`` each, or ``(type,
        help)`` where there is no default, or what argparse takes.
      by: fields that tell rows apart: a new row replaces those that agree with it in all of them.
      file: ``settings -> name`` of the results.
      command: ``case -> command line`` of a row, without its output folder.
      aliases: flags that name what is measured.
      strict: whether an error in a row is one of the command, once all is written.
    """

    name: str
    names: Callable[[Settings], Iterable[str]]
    measure: Callable[[Case], list[Row]]
    report: Report
    cases: Callable[[Settings, list[Row]], Iterable[Case]] | None = None
    methods: tuple[str, ...] = ("",)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by: tuple[str, ...] = ("target", "method")
    file: Callable[[Settings], str] | None = None
    command: Callable[[Case], str] | None = None
    strict: bool = False
    aliases: tuple[str, ...] = ("--names",)

    def parser(self) -> argparse.ArgumentParser:
        """Reads the command's options."""
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks {self.name}", description=self.report.doc
        )
        add = parser.add_argument
        for flag, given in self.options.items():
            add(flag, **(given if isinstance(given, dict) else _option(*given)))
        add(*self.aliases, nargs="+", help="what is measured; all if left out")
        add("--output", type=Path, default=RESULTS, help="folder for the results")
        add("--keep", action="store_true", help="leave rows of the same command and version")
        return parser

    def planned(self, settings: Settings, rows: list[Row]) -> Iterable[Case]:
        """What is to be measured."""
        if self.cases is not None:
            return self.cases(settings, rows)
        seed = settings.get("seed", 0)
        names = itertools.product(settings["names"], self.methods)
        return (Case(*name, seed=-1 if seed is None else seed, settings=settings) for name in names)

    def line_of(self, case: Case) -> str:
        """The command line that measures a case."""
        if self.command is not None:
            return self.command(case)
        parts, parser = ["python", "-m", "benchmarks", self.name], self.parser()
        for flag in self.options:
            name = flag.lstrip("-").replace("-", "_")
            value = case.settings.get(name)
            if value is None or value == parser.get_default(name):
                continue
            given = value if isinstance(value, list | tuple) else [] if value is True else [value]
            parts += [flag] * flag.startswith("-") + [str(part) for part in given]
        return shlex.join([*parts, "--names", case.target])


def _option(default: Any, words: str) -> dict[str, Any]:
    """What argparse is told of an option."""
    if default is False:
        return {"action": "store_true", "help": words}
    if isinstance(default, type):
        return {"type": default, "help": words}
    several = {"nargs": "+", "type": type(default[0])} if isinstance(default, tuple) else {}
    return {"type": type(default), "default": default, "help": words} | several


def run(
    benchmark: Benchmark,
    settings: Settings,
    names: Sequence[str] | None = None,
    output: Path = RESULTS,
    keep: bool = False,
) -> list[Row]:
    """All rows of the file: measures cases, writes rows one by one, then tables and figure.

    Args:
      benchmark: what to run.
      settings: values of its options.
      names: of targets; all if None. Rows of others that the file holds are kept.
      output: folder of NAME.jsonl, NAME.md and NAME.png.
      keep: leave out cases whose rows come from the same command and version of the package.

    Raises:
      ValueError: no such name, or what the benchmark refuses.
      RuntimeError: a row has an error, and the benchmark is strict.
    """
    known = list(benchmark.names(settings))
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"names must be among {', '.join(known)}; got {', '.join(unknown)}.")
    output.mkdir(parents=True, exist_ok=True)
    file = benchmark.name if benchmark.file is None else benchmark.file(settings)
    path, rows, about = output / f"{file}.jsonl", read(output / f"{file}.jsonl"), machine()
    told = ("command", "versions", "method", "seed")

    def fields(row: Row, wanted: Iterable[str]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in wanted)

    def expected(case: Case) -> Row:
        row: Row = {"target": case.target, "method": case.method, "seed": case.seed}
        row = {name: value for name, value in row.items() if value != ""}
        return row | {"command": benchmark.line_of(case)} | about

    done = {fields(row, told) for row in rows} if keep else set()
    given = {**settings, "names": list(names or known), "output": output}
    cases = (c for c in benchmark.planned(given, rows) if fields(expected(c), told) not in done)
    place = {name: i for i, name in enumerate(known)}
    for case, found in _measured(benchmark.measure, cases):
        new = [_plain(expected(case) | row) for row in found]
        replaced = {fields(row, benchmark.by) for row in new}
        rows[:] = [row for row in rows if fields(row, benchmark.by) not in replaced] + new
        rows.sort(key=lambda row: place.get(row["target"], len(place)))
        # After each case: a run of hours may end early.
        write(path, rows)
        print(benchmark.report.lines(new), flush=True)
    path.with_suffix(".md").write_text(benchmark.report.text(rows))
    if (draw := benchmark.report.figure) is not None and (figure := draw(rows)) is not None:
        from benchmarks import figures

        figures.save(figure, path.with_suffix(".png"))
    print(f"Saved {output / file}.jsonl and .md")
    failed = [f"{row['target']}: {row['error']}" for row in rows if "error" in row]
    if benchmark.strict and failed:
        raise RuntimeError("; ".join(failed))
    return rows


def _measured(
    measure: Callable[[Case], list[Row]], cases: Iterable[Case]
) -> Iterator[tuple[Case, list[Row]]]:
    """Cases one by one, or as many at a time as their settings say."""
    for jobs, group in itertools.groupby(cases, lambda case: case.settings.get("jobs", 1)):
        if jobs == 1:
            yield from ((case, measure(case)) for case in group)
            continue
        at_a_time = list(group)
        with ThreadPoolExecutor(jobs) as pool:
            yield from zip(at_a_time, pool.map(measure, at_a_time), strict=True)


# What most rows have from the one before: left out of it in files.
_SHARED = ("command", "versions", "device", "date")


def read(path: Path) -> list[Row]:
    """Rows of a file; none if there is no file."""
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        before = rows[-1] if rows else {}
        row = {name: before[name] for name in _SHARED if name in before} | json.loads(line)
        rows.append({k: v for k, v in row.items() if not (k in _SHARED and v is None)})
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows, one a line: NaN is null, infinities are the strings "inf" and "-inf"."""
    lines, before = [], dict[str, Any]()
    for row in map(_plain, rows):
        shared = {name: row.get(name) for name in _SHARED}
        changed = {name: value for name, value in shared.items() if value != before.get(name)}
        own = {name: value for name, value in row.items() if name not in _SHARED}
        lines.append(json.dumps(changed | own, allow_nan=False) + "\n")
        before = shared
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines))
    partial.replace(path)


def _plain(value: Any) -> Any:
    """Strict JSON, numbers to eight digits."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return value
    if math.isfinite(value):
        return float(f"{value:.8g}")
    return None if math.isnan(value) else str(value)


def machine() -> Row:
    """What rows are measured with, on and when."""
    import jax

    names = ("consistent_samplers", "jax", "numpyro")
    # Those that this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in names),
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()}), {cores} cores",
        "date": datetime.date.today().isoformat(),
    }
