"""How a run listens and what it shows: Ctrl-C and SIGTERM, and a progress bar."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proxsae.conventions import Error, library


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
def bar(steps: int, done: int, progress: bool | None) -> Iterator[Any]:
    """A function to call after every step with what the bar should show; by default there is a bar on a terminal."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda shown: None
        return
    try:
        tqdm = library("tqdm", "study").tqdm
    except Error:
        if progress:
            raise
        yield lambda shown: None
        return
    with tqdm(total=steps, initial=done, desc="train", unit="step", leave=False) as line:

        def advance(shown: dict[str, float]) -> None:
            line.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
            line.update()

        yield advance
