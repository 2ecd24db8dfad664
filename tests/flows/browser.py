"""A page in headless Chromium, which is driven over a pipe (the DevTools protocol): its markup, errors and requests."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium: Final = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-pipe"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
_SECONDS: Final = 60
"""For anything that a page is waited for."""


class Tab:
    """An open page."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._left, self._number = send, receive, b"", 0
        self._session: dict[str, str] = {}
        self.errors: list[str] = []
        """What went to the console as an error or a warning, and what was thrown."""
        self.requests: list[str] = []
        """Addresses that were asked for, but data in the page itself."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> Any:
        """Return the answer to a call of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values, **self._session}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._take(answer.get("method"), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._receive, 1 << 20)
            assert part, "chromium has ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))

    def _take(self, method: str | None, values: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.errors.append(str(values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(values["entry"]))
        elif method == "Network.requestWillBeSent" and not values["request"]["url"].startswith(("data:", "blob:")):
            self.requests.append(values["request"]["url"])

    def resize(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Show the page in a window of this size, in a colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, page: Path, drawn: str, address: str = "") -> None:
        """Open a report, at the series that its address names, and wait until a series is drawn."""
        self.call("Page.navigate", url=f"{page.as_uri()}{address}")
        self.until(f"document.documentElement?.dataset.drawn === {json.dumps(drawn)}")

    @property
    def markup(self) -> str:
        """The page as its scripts have made it, without them."""
        dom = self.run("document.documentElement.outerHTML")
        return re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)

    def run(self, script: str) -> Any:
        """Return the value of an expression, or of its promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, test: str) -> None:
        """Wait until an expression is true."""
        wait = "new Promise((done) => setTimeout(done, 20))"
        end = f"performance.now() + {1000 * _SECONDS}"
        assert self.run(
            f"(async () => {{ const end = {end}; while (!({test}) && performance.now() < end) await {wait}; "
            f"return Boolean({test}); }})()"
        ), test


@contextmanager
def tab() -> Iterator[Tab]:
    """Yield a new page in a browser of its own."""
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4.
    start = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "-", str(CHROMIUM), *_FLAGS]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [*start, f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        try:
            yield Tab(send, receive)
        finally:
            os.close(send)  # It ends when nobody can ask for anything.
            process.wait(_SECONDS)
            os.close(receive)
