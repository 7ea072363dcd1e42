"""A browser without a window, driven over a pipe in the DevTools protocol: what a page draws, says and asks for."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads from 3 and writes to 4: a first process puts the pipes there and becomes the browser.
BECOME = "import os, sys; r, w, *c = sys.argv[1:]; os.dup2(int(r), 3); os.dup2(int(w), 4); os.execv(c[0], c)"
SPOKEN = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


def find(names: Sequence[str] = NAMES) -> str | None:
    """The path of the first browser that is installed, or None."""
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One browser with one page, killed at the end of a `with` block whatever happens in it.

    Every wait ends with TimeoutError after `patience` seconds.
    """

    def __init__(self, executable: str, patience: float = 60.0) -> None:
        self.patience = patience
        self.events: list[dict[str, Any]] = []
        self._count, self._rest, self._session = 0, b"", ""
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        command = [sys.executable, "-ISc", BECOME, str(theirs_in), str(theirs_out), executable, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: the browser and all its helpers
            self._process.wait()
            os.close(self._in)
            os.close(self._out)
            self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; what happens meanwhile goes to `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.patience
        while (answer := self._read(deadline)).get("id") != self._count:
            self.events.append(answer)
        if "error" in answer:
            msg = f"{method}: {answer['error']}"
            raise RuntimeError(msg)
        return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(deadline - time.monotonic(), 0))[0]:
                msg = f"the browser did not answer within {self.patience} seconds"
                raise TimeoutError(msg)
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                msg = "the browser ended"
                raise RuntimeError(msg)
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        """Open a file and wait until it is loaded and drawn; forgets what the page before said and asked for."""
        self.events = []
        self.send("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + self.patience
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read(deadline))
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def said(self) -> list[str]:
        """What was written to the console since the page was opened, and every error."""
        self.settle()
        return [json.dumps(event["params"]) for event in self.events if event["method"] in SPOKEN]

    def requests(self) -> list[str]:
        """Every address that was asked for since the page was opened, that of the page with them."""
        self.settle()
        asked = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def look(self, width: int = 1200, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """Set the size of the window (under 600 pixels: of a phone), light or dark, screen or print."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        self.send("Emulation.setEmulatedMedia", media=media,
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
        self.settle()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            msg = f"{expression}: {found['exceptionDetails']}"
            raise RuntimeError(msg)
        return found["result"].get("value")

    def screenshot(self, box: Sequence[float] | None = None, scale: float = 1) -> bytes:
        """A PNG of the whole page, or of a box of it: left, top, width and height."""
        if box is None:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            box = (0, 0, size["width"], size["height"])
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": scale}
        return base64.b64decode(self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed, on A4."""
        self.send("Emulation.setEmulatedMedia", media="print")
        return base64.b64decode(self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are neither 3 nor 4, which the browser needs."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
