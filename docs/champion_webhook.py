"""A receiver of MLflow's webhooks: runs a command, such as `forecast score`, whenever the champion of a model changes.

    export MLFLOW_WEBHOOK_SECRET=...
    python champion_webhook.py 8080 loads forecast score registry.name=loads data.path=panel output.path=scores

A request must be signed with the secret and at most five minutes old. The command runs after the answer, one at a time;
moves during a run lead to one more run. A repeated request does nothing.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SECONDS = 300
_MAX_BYTES = 1_000_000
_MAX_IDS = 1_000


def is_signed(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Return whether a request is signed with the secret and recent."""
    delivery, moment = headers.get("X-MLflow-Delivery-Id", ""), headers.get("X-MLflow-Timestamp", "")
    if not delivery or not moment.isdecimal() or abs(time.time() - int(moment)) > _SECONDS:
        return False
    digest = hmac.new(secret.encode(), f"{delivery}.{moment}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(digest).decode()}"
    return hmac.compare_digest(expected.encode(), headers.get("X-MLflow-Signature", "").encode())


class Receiver(ThreadingHTTPServer):
    """Answers webhooks of the server at once, and runs the command in a thread."""

    def __init__(self, address: tuple[str, int], secret: str, model: str, command: Sequence[str]) -> None:
        super().__init__(address, _Handler)
        self.secret, self.model, self.command = secret, model, command
        self._deliveries: dict[str, None] = {}
        self._lock, self._moved = threading.Lock(), threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def accept(self, delivery: str, content: object) -> None:
        """Run the command if the request is new and tells that the alias `champion` of the model was set."""
        if not isinstance(content, dict) or not isinstance(data := content.get("data"), dict):
            return
        event = content.get("entity"), content.get("action"), data.get("name"), data.get("alias")
        if event != ("model_version_alias", "created", self.model, "champion"):
            return
        with self._lock:
            if delivery in self._deliveries:
                return
            self._deliveries[delivery] = None
            if len(self._deliveries) > _MAX_IDS:
                del self._deliveries[next(iter(self._deliveries))]
        self._moved.set()

    def _work(self) -> None:
        while self._moved.wait():
            self._moved.clear()
            code = subprocess.run(self.command, stdin=subprocess.DEVNULL, check=False).returncode
            logging.warning("%s ended with exit code %d", " ".join(self.command[:2]), code)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if 0 < size <= _MAX_BYTES else b""
        if not is_signed(self.headers, body, self.server.secret):
            self.send_error(401)
            return
        try:
            content = json.loads(body)
        except ValueError:
            self.send_error(400)
            return
        self.server.accept(self.headers["X-MLflow-Delivery-Id"], content)
        self.send_response(202)
        self.end_headers()


if __name__ == "__main__":
    port, model, *command = sys.argv[1:]
    with Receiver(("127.0.0.1", int(port)), os.environ["MLFLOW_WEBHOOK_SECRET"], model, command) as receiver:
        receiver.serve_forever()
