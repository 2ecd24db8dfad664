import hashlib
import hmac
import itertools
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pipelines.notify import SIGNATURE, TOLERANCE, Notifier, NotifyConfig, Webhook, event_of, post, signature, verify

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
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.received.append((dict(self.headers), body))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if isinstance(answer, tuple):
            self.send_response(answer[0])
            self.send_header("Location", answer[1])
            self.end_headers()
            return
        if answer == "hang":
            self.server.released.wait(30)
            return
        self.send_response(answer)
        self.end_headers()

    do_GET = do_POST  # noqa: N815  of http.server

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
    sent, _, digest = headers[SIGNATURE].removeprefix("t=").partition(",v1=")
    assert abs(int(sent) - time.time()) < 60
    assert digest == hmac.new(SECRET.encode(), f"{sent}.".encode() + body, hashlib.sha256).hexdigest()
    assert verify(SECRET.encode(), headers[SIGNATURE], body)
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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_leads_nowhere(
    server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [(status, f"{server.url}/elsewhere?token=hidden")]
    told = notifier(server)
    told.tell("failure", {})
    told.close(10)
    assert len(server.received) == 1  # Neither followed nor tried again.
    assert f"not delivered in 1 attempts (HTTP status {status}, a redirect, which is not followed" in caplog.text
    assert "hidden" not in caplog.text


def test_each_attempt_is_signed_with_its_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.count(1_700_000_000, 100)
    monkeypatch.setattr("pipelines.notify.time.time", lambda: next(moments))
    server.answers = [500]
    webhook = Webhook(url=SecretStr(server.url), secret_env="HOOK_SECRET", retries=1, backoff=0)
    assert post(webhook, b"{}")
    first, second = (headers[SIGNATURE] for headers, _ in server.received)
    sent = [int(header.removeprefix("t=").partition(",")[0]) for header in (first, second)]
    assert sent[0] < sent[1]
    assert all(verify(SECRET.encode(), header, b"{}", now=at) for header, at in zip((first, second), sent, strict=True))


def test_a_signature_holds_for_its_body_its_key_and_some_minutes() -> None:
    key, body, moment = b"k3y", b'{"event": "failure"}', 1_700_000_000
    header = f"t={moment},v1={signature(key, moment, body)}"
    for seconds, valid in ((0, True), (TOLERANCE, True), (-TOLERANCE, True), (TOLERANCE + 1, False), (-301, False)):
        assert verify(key, header, body, now=moment + seconds) is valid
    later = header.replace(str(moment), str(moment + 900))
    for other in (later, header[:-1], "", "t=,v1=", "v1=abc", f"sha256={signature(key, moment, body)}", "t=²,v1=é"):
        assert not verify(key, other, body, now=moment + 900 * (other == later))
    assert not verify(b"other", header, body, now=moment)
    assert not verify(key, header, body + b" ", now=moment)


def test_the_recipe_in_the_docs_verifies_what_is_sent() -> None:
    page = (Path(__file__).parents[3] / "docs" / "schedule.md").read_text()
    (recipe,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def is_genuine" in block]
    names: dict[str, Any] = {}
    exec(recipe, names)
    moment = int(time.time())
    header = f"t={moment},v1={signature(b'k3y', moment, b'{}')}"
    assert names["is_genuine"](b"k3y", header, b"{}")
    assert not names["is_genuine"](b"k3y", header, b"[]")
    old = f"t={moment - 1000},v1={signature(b'k3y', moment - 1000, b'{}')}"
    assert not names["is_genuine"](b"k3y", old, b"{}")


def test_a_command_that_hangs_is_named_without_its_arguments(caplog: pytest.LogCaptureFixture) -> None:
    run = [sys.executable, "-c", "import time; time.sleep(30)  # s3cret"]
    told = Notifier(NotifyConfig.model_validate({"command": {"run": run, "timeout": 0.2}}))
    told.tell("failure", {})
    told.close(20)
    assert "no end within 0.2 s" in caplog.text
    assert "s3cret" not in caplog.text


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
