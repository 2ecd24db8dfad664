"""Telling others how a job ended: a signed JSON POST, and a command. Neither can hold a job up."""

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
"""Header with "sha256=" and the HMAC of the body in hexadecimal digits."""

BREACHES: Final = (GateRefused.exit_code, ThresholdBreached.exit_code)
"""Exit codes of a verb that did its work, and found something not good enough."""


class Webhook(Config):
    """A server that is told."""

    url: SecretStr
    """http:// or https://; ${oc.env:NAME} if it is a secret."""
    secret_env: str | None = None
    """The environment variable with the key that signs the body (HMAC-SHA256)."""
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
        """How long one notice takes at most."""
        hook, command = self.webhook, self.command
        posts = hook.timeout * (hook.retries + 1) + hook.backoff * (2**hook.retries - 1) if hook else 0.0
        return posts + (command.timeout if command else 0.0)

    def includes(self, event: Event) -> bool:
        """Return whether anybody is to be notified of an event."""
        return event in self.events and bool(self.webhook or self.command)


def event_of(code: int) -> Event:
    """Return what a job's exit code means."""
    if code == RolledBack.exit_code:
        return "rollback"
    return "success" if code == 0 else "breach" if code in BREACHES else "failure"


class Notifier:
    """Tells one event after the other, in a thread of its own."""

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
        """Send a notice, soon; returns at once.

        `claim` says, when it is its turn, whether it is still to be sent; `close` takes whether all accepted it.
        """
        if event in self._config.events:
            with self._idle:
                self._open += 1
            self._queue.put((json.dumps({"event": event, **facts}).encode(), claim, close))

    def close(self, seconds: float) -> None:
        """Wait so long for what is not told yet."""
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
    """Send a body, and try again; return whether it arrived. The log has the host alone: a URL may be a secret."""
    url = webhook.url.get_secret_value()
    headers = {"Content-Type": "application/json", "User-Agent": "gatecast"}
    if webhook.secret_env:
        headers[SIGNATURE] = f"sha256={sign(os.environ[webhook.secret_env].encode(), body)}"
    request = urllib.request.Request(url, body, headers)
    for attempt in range(webhook.retries + 1):
        if attempt:
            time.sleep(webhook.backoff * 2 ** (attempt - 1))
        failure = _within(webhook.timeout, lambda: urllib.request.urlopen(request, timeout=webhook.timeout).close())
        if failure is None:
            return True
    host = urlsplit(url).hostname
    _LOG.warning("webhook at %s: not delivered in %d attempts (%s)", host, webhook.retries + 1, failure)
    return False


def _within(seconds: float, send: Callable[[], None]) -> str | None:
    """Return why something failed, None if it did not; a server that sends a byte now and then is cut off, too."""
    ended: list[str | None] = []

    def attempt() -> None:
        try:
            send()
            ended.append(None)
        except urllib.error.HTTPError as error:
            ended.append(f"HTTP status {error.code}")
        except (OSError, ValueError, HTTPException) as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return ended[0] if ended else f"no answer within {seconds:g} s"


def sign(key: bytes, body: bytes) -> str:
    """Return the HMAC-SHA256 of a body in hexadecimal digits."""
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _run(command: Command, body: bytes) -> bool:
    try:
        done = subprocess.run(command.run, input=body, timeout=command.timeout, check=False)
        failure = f"exit code {done.returncode}" if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        _LOG.warning("notify.command %s: %s", command.run[0], failure)
    return failure is None
