"""Contenders measured side by side: each in a process of its own, in alternation (A B C A B C …).

A process of its own gives each its peak memory; alternation gives all the same weather. Between its
turns a contender waits and uses no processor. A turn is of as many units as half a second takes, so
that threads which have to wake up weigh little.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from machine import ON_GPU, give_back, peak_bytes, wait

Work = Callable[[], object]  # one unit

TURN = 0.5  # seconds, at least


@dataclass(frozen=True)
class Contender:
    """What is measured: `make(*args)`, called in its own process, returns one unit of work."""

    make: Callable[..., Work]
    args: tuple[Any, ...] = ()
    times: float = 1  # that its unit does the amount of the row


@dataclass(frozen=True)
class Result:
    """A contender's rates in units of the row, and the peak memory of its process."""

    median: float
    lowest: float
    highest: float
    peak_bytes: int


def contest(contenders: Mapping[str, Contender], amount: float, rounds: int) -> dict[str, Result]:
    """Rates of all contenders: `amount` of what a unit does, by its seconds, over the rounds."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    running, peaks = {}, {}
    for name, contender in contenders.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, contender), daemon=True)
        process.start()
        running[name] = process, ours
    for _, connection in running.values():
        connection.recv()  # ready, and warm
    for _ in range(rounds):
        for name, (_, connection) in running.items():
            connection.send("go")
            seconds[name].append(connection.recv())
    for name, (process, connection) in running.items():
        connection.send("stop")
        peaks[name] = connection.recv()
        process.join()
    found = {}
    for name, taken in seconds.items():
        done = amount * contenders[name].times
        median, slowest, fastest = statistics.median(taken), max(taken), min(taken)
        found[name] = Result(done / median, done / slowest, done / fastest, peaks[name])
    return found


def _seconds_a_unit(work: Work) -> float:
    """The mean over a turn."""
    if ON_GPU:  # it takes the memory again that it gave back
        work()
        wait()
    start, units = time.perf_counter(), 0
    while units == 0 or time.perf_counter() - start < TURN:
        work()
        wait()
        units += 1
    return (time.perf_counter() - start) / units


def _serve(connection: Connection, contender: Contender) -> None:
    work = contender.make(*contender.args)
    work()
    wait()
    give_back()
    connection.send("ready")
    while connection.recv() == "go":
        connection.send(_seconds_a_unit(work))
        give_back()
    connection.send(peak_bytes())
