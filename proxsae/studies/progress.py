"""What a long run shows on stderr: lines, on a terminal a bar, and a sign of life when nothing ends for a while."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import Any

BEAT = 1.0  # seconds between two looks at the clock
PATIENCE = 5.0  # seconds after which a sign of life is printed: then after twice, four times ... as many


class Progress:
    """Used as a context: `say` prints a line, `doing` says what the program does now, `done` that it has ended.

    On a terminal a bar counts estimated seconds of work and moves within a task; elsewhere lines do.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown, self.started = shown, time.perf_counter()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._what, self._since, self._estimate, self._next = "", self.started, 0.0, PATIENCE
        self._bar: Any = None
        self._before = 0.0  # seconds of work that have ended, as estimated

    def __enter__(self) -> Progress:
        if self.shown:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._ended.set()
        with self._lock:
            self._what = ""
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def say(self, line: str) -> None:
        """Print a line, with the seconds since the start."""
        if self.shown:
            with self._lock:
                self._say(line)

    def doing(self, what: str, seconds: float = 0.0) -> None:
        """Note what is done from now on, and an estimate of its seconds."""
        with self._lock:
            self._what, self._since, self._estimate, self._next = what, time.perf_counter(), seconds, PATIENCE
        self._show()

    def done(self, seconds: float, total: float) -> None:
        """Move the bar: `seconds` of `total` of work have ended, both as estimated."""
        with self._lock:
            self._before, self._what = seconds, ""
            if self._bar is None and self.shown and sys.stderr.isatty():
                with suppress(ImportError):
                    from tqdm import tqdm

                    form = "{percentage:3.0f} % |{bar:20}| {elapsed}, {desc}"
                    self._bar = tqdm(total=round(total, 1), leave=False, bar_format=form)
        self._show()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def bar(self) -> bool:
        """Whether there is a bar, so that no line is needed for each task."""
        return self._bar is not None

    def _say(self, line: str) -> None:
        text = f"[{self.seconds:6.1f} s] {line}"
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._show()
            with self._lock:
                elapsed = time.perf_counter() - self._since
                if self._what and self._bar is None and elapsed >= self._next:
                    self._say(f"{self._what}: {elapsed:.0f} s so far")
                    self._next *= 2

    def _show(self) -> None:
        with self._lock:
            if self._bar is not None:
                elapsed = time.perf_counter() - self._since if self._what else 0.0
                self._bar.n = min(self._before + min(elapsed, self._estimate), self._bar.total)
                self._bar.set_description_str(f"{self._what}, {elapsed:.0f} s" if self._what else "", refresh=False)
                self._bar.refresh()
