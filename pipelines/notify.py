"""Notices about the end of jobs: a signed JSON POST, and a command. Neither delays a job."""

import hashlib
import hmac
import json
import logging
import os
import queue
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from forecast.config import Config
from forecast.errors import GatecastError, GateRefused, RolledBack, ThresholdBreached

_LOG = logging.getLogger(__name__)

Event = Literal["success", "failure", "breach", "rollback"]
SIGNATURE: Final = "X-Gatecast-Signature"
"""Header with "t=" and the time of sending in seconds since 1970, and ",v1=" and `signature` of time and body."""
TOLERANCE: Final = 300.0
"""Tolerated seconds between sending and verification, clock differences included."""

_REDIRECT: Final = ", a redirect, which is not followed: set webhook.url to where it leads"

BREACHES: Final = (GateRefused.exit_code, ThresholdBreached.exit_code)
"""Exit codes of verbs that completed with a negative verdict."""


class Webhook(Config):
    """A server that is told."""

    url: SecretStr
    """http:// or https://; ${oc.env:NAME} if it is a secret."""
    secret_env: str | None = None
    """The environment variable with the key that signs time and body (HMAC-SHA256)."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds for one attempt."""
    retries: Annotated[int, Field(ge=0)] = 3
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the first retry, twice as many before each further one."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.url.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("webhook.url has to begin with http:// or https://")
        if self.secret_env and not os.environ.get(self.secret_env):
            raise ValueError(f"webhook.secret_env: the environment variable {self.secret_env} is not set")
        return self


class Command(Config):
    """A program that is told: it reads the JSON from its standard input."""

    run: Annotated[tuple[str, ...], Field(min_length=1)]
    """The program and its arguments; no shell."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which it is killed."""


class NotifyConfig(Config):
    """Who is told of what."""

    events: tuple[Event, ...] = ("failure", "breach", "rollback")
    """A job was done, was given up, found something not good enough (a promotion that was refused, a threshold that was
    breached), or rolled the champion back."""
    webhook: Webhook | None = None
    command: Command | None = None

    @property
    def seconds(self) -> float:
        """Longest duration of one notice."""
        hook, command = self.webhook, self.command
        posts = hook.timeout * (hook.retries + 1) + hook.backoff * (2**hook.retries - 1) if hook else 0.0
        return posts + (command.timeout if command else 0.0)

    def includes(self, event: Event) -> bool:
        """Return whether an event has a hook."""
        return event in self.events and bool(self.webhook or self.command)


def event_of(code: int) -> Event:
    """Return the event of an exit code."""
    if code == RolledBack.exit_code:
        return "rollback"
    return "success" if code == 0 else "breach" if code in BREACHES else "failure"


class Notifier:
    """Sends notices one after the other, in its own thread."""

    def __init__(self, config: NotifyConfig) -> None:
        self._config = config
        self._queue: queue.SimpleQueue[tuple[bytes, Callable[[], bool], Callable[[bool], None]]] = queue.SimpleQueue()
        self._open = 0
        self._idle = threading.Condition()
        threading.Thread(target=self._work, name="notify", daemon=True).start()

    def tell(
        self,
        event: Event,
        facts: Mapping[str, Any],
        claim: Callable[[], bool] = lambda: True,
        close: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Queue a notice, and return immediately.

        `claim` is called before sending, and returns whether it is still to be sent; `close` takes whether all hooks
        accepted it.
        """
        if event in self._config.events:
            with self._idle:
                self._open += 1
            self._queue.put((json.dumps({"event": event, **facts}).encode(), claim, close))

    def close(self, seconds: float) -> None:
        """Wait for unsent notices, up to some seconds."""
        with self._idle:
            if not self._idle.wait_for(lambda: self._open == 0, seconds):
                _LOG.warning("%d notification(s) were not delivered in time", self._open)

    def _work(self) -> None:
        while True:
            body, claim, close = self._queue.get()
            try:
                if claim():
                    close(self._deliver(body))
            except GatecastError as error:
                _LOG.warning("notification: %s", error)
            finally:
                with self._idle:
                    self._open -= 1
                    self._idle.notify_all()

    def _deliver(self, body: bytes) -> bool:
        webhook, command = self._config.webhook, self._config.command
        posted = post(webhook, body) if webhook else True
        return (_run(command, body) if command else True) and posted


def post(webhook: Webhook, body: bytes) -> bool:
    """Send a body with retries; return whether it was accepted.

    A redirect is a failure without retry. The log names only the host, as a URL may be a secret.
    """
    url, host = webhook.url.get_secret_value(), urlsplit(webhook.url.get_secret_value()).hostname
    key = os.environ[webhook.secret_env].encode() if webhook.secret_env else None
    failure: str | None = None
    for attempt in range(webhook.retries + 1):
        if attempt:
            time.sleep(webhook.backoff * 2 ** (attempt - 1))
        request = urllib.request.Request(url, body, _headers(key, body))
        failure = _within(webhook.timeout, request)
        if failure is None:
            return True
        if failure.endswith(_REDIRECT):
            break
    _LOG.warning("webhook at %s: not delivered in %d attempts (%s)", host, attempt + 1, failure)
    return False


def _headers(key: bytes | None, body: bytes) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": "gatecast"}
    if key is not None:
        moment = int(time.time())
        headers[SIGNATURE] = f"t={moment},v1={signature(key, moment, body)}"
    return headers


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an unsuccessful answer."""

    def redirect_request(self, *_: Any) -> None:
        """Return None: no other request follows."""


def _within(seconds: float, request: urllib.request.Request) -> str | None:
    """Return why a request failed, None if it succeeded; the limit also stops a server that drips bytes."""
    ended: list[str | None] = []

    def attempt() -> None:
        try:
            urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds).close()
            ended.append(None)
        except urllib.error.HTTPError as error:
            error.close()
            redirect = error.code in (301, 302, 303, 307, 308)
            ended.append(f"HTTP status {error.code}{_REDIRECT if redirect else ''}")
        except (OSError, ValueError, HTTPException) as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return ended[0] if ended else f"no answer within {seconds:g} s"


def signature(key: bytes, moment: int, body: bytes) -> str:
    """Return the HMAC-SHA256 of a time in seconds since 1970, a dot and a body, in hexadecimal digits."""
    return hmac.new(key, b"%d." % moment + body, hashlib.sha256).hexdigest()


def verify(key: bytes, header: str, body: bytes, *, tolerance: float = TOLERANCE, now: float | None = None) -> bool:
    """Return whether the header of a body is signed with the key, and not older than `tolerance`.

    `now` is the time in seconds since 1970, by default that of the clock.
    """
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    time_sent = parts.get("t", "")
    if not (time_sent.isascii() and time_sent.isdigit()):
        return False
    is_authentic = hmac.compare_digest(signature(key, int(time_sent), body).encode(), parts.get("v1", "").encode())
    return is_authentic and abs((time.time() if now is None else now) - int(time_sent)) <= tolerance


def _run(command: Command, body: bytes) -> bool:
    try:
        process = subprocess.run(command.run, input=body, timeout=command.timeout, check=False)
        failure = f"exit code {process.returncode}" if process.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"no end within {command.timeout:g} s"
    except OSError as error:
        failure = str(error.strerror or type(error).__name__)
    if failure:
        _LOG.warning("notify.command %s: %s", command.run[0], failure)
    return failure is None
