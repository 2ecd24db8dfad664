import hashlib
import hmac
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.notify import SIGNATURE, Notifier, NotifyConfig, event_of

SECRET = "k3y-of-the-hook"


class Server(ThreadingHTTPServer):
    """Answers with the statuses it was given, one after the other; "hang" takes its time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Any] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/t0ken-in-the-path"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((dict(self.headers), body))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == "hang":
            self.server.released.wait(30)
            return
        self.send_response(answer)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.released.set()
        running.shutdown()


def notifier(server: Server, **settings: Any) -> Notifier:
    hook = {"url": server.url, "secret_env": "HOOK_SECRET", "backoff": 0.01, "timeout": 0.3, **settings}
    return Notifier(NotifyConfig.model_validate({"webhook": hook}))


def test_a_webhook_is_told_with_a_signature(server: Server) -> None:
    told = notifier(server)
    told.tell("failure", {"schedule": "nightly", "error": "no table"})
    told.tell("success", {"schedule": "nightly"})  # Not asked for.
    told.close(10)
    ((headers, body),) = server.received
    assert json.loads(body) == {"event": "failure", "schedule": "nightly", "error": "no table"}
    assert headers[SIGNATURE] == "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["Content-Type"] == "application/json"


def test_it_is_tried_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answers = [503, 500]
    told = notifier(server)
    told.tell("breach", {})
    told.close(10)
    assert len(server.received) == 3
    assert not caplog.records


def test_one_that_hangs_holds_nothing_up_and_no_secret_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answers = ["hang", 500]
    told = notifier(server, retries=1)
    before = time.monotonic()
    told.tell("failure", {})
    assert time.monotonic() - before < 0.3  # It has not waited for the server.
    told.close(10)
    assert "webhook at 127.0.0.1: not delivered in 2 attempts (HTTP status 500)" in caplog.text
    assert SECRET not in caplog.text
    assert "t0ken" not in caplog.text


def test_closing_waits_only_so_long(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answers = ["hang"]
    told = notifier(server, timeout=20)
    told.tell("failure", {})
    told.close(0.05)
    assert "1 notification(s) were not delivered in time" in caplog.text


def test_a_command_reads_the_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "told.json"
    script = f"import sys, pathlib; pathlib.Path({str(target)!r}).write_text(sys.stdin.read()); sys.exit(3)"
    config = {"events": ["success"], "command": {"run": [sys.executable, "-c", script]}}
    told = Notifier(NotifyConfig.model_validate(config))
    told.tell("success", {"run": 1})
    told.close(20)
    assert json.loads(target.read_text()) == {"event": "success", "run": 1}
    assert "exit code 3" in caplog.text


def test_what_an_exit_code_means() -> None:
    assert [event_of(code) for code in (0, 5, 8, 9)] == ["success", "breach", "breach", "rollback"]
    assert {event_of(code) for code in (1, 3, 124, -9)} == {"failure"}
