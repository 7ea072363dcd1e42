"""How a run listens and what it shows: Ctrl-C and SIGTERM, a progress bar, and lines where there is no terminal."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from proxsae.conventions import Error, library

EVERY = 30.0  # seconds between two lines of progress, and one at each tenth of the run
Shown = Callable[[dict[str, float]], None]  # called after each step with the step's metrics


@contextmanager
def stops(wanted: bool) -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, where a run can be continued; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def asked(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def progress_of(steps: int, done: int, progress: bool | str | None) -> Iterator[Shown]:
    """A function to call after every step: it moves a bar, prints lines, or does nothing.

    `progress` is True for a bar, False for nothing, None for a bar on a terminal and nothing elsewhere, and "lines" for
    a bar on a terminal and lines on standard error elsewhere, with one line where a run is continued.
    """
    told = progress == "lines"
    if told and done:
        print("all steps are done" if done == steps else f"continuing at step {done} of {steps}", file=sys.stderr)
    terminal = sys.stderr.isatty()
    with ExitStack() as stack:
        if progress is True or (terminal and progress is not False):
            bar = _bar(steps, done, needed=progress is True)
            if bar is not None:
                stack.enter_context(bar)
                yield lambda shown: _advance(bar, shown)
                return
        yield _lines(steps, done) if told else lambda shown: None


def _bar(steps: int, done: int, needed: bool) -> Any:
    try:
        tqdm = library("tqdm", "study").tqdm
    except Error:
        if needed:
            raise
        return None
    return tqdm(total=steps, initial=done, desc="train", unit="step", leave=False)


def _advance(bar: Any, shown: dict[str, float]) -> None:
    bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
    bar.update()


def _lines(steps: int, done: int) -> Shown:
    """Print the first step, every tenth of the run, and what takes longer than `EVERY` seconds."""
    start = last = time.monotonic()
    first, step = done, done

    def show(shown: dict[str, float]) -> None:
        nonlocal step, last
        step, now = step + 1, time.monotonic()
        if step - first != 1 and step * 10 // steps == (step - 1) * 10 // steps and now - last < EVERY:
            return
        last = now
        left = (steps - step) * (now - start) / (step - first)
        metrics = ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
        wait = f"; about {left:.0f} s left" if step < steps and step - first > 1 else ""
        print(f"step {step} of {steps}: {metrics}{wait}", file=sys.stderr, flush=True)

    return show
