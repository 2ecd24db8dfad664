"""A tracking server that stops to answer, or answers with errors, is an error in bounded time, and told before."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from forecast.config import RegistryConfig
from forecast.errors import RegistryError
from forecast.tracking.calls import Calls
from forecast.tracking.registry import Registry


@contextmanager
def tracking_server(behaviour: str) -> Iterator[tuple[str, list[str]]]:
    """Serve one answer on a free port, then only `behaviour`; yield the address, and the paths that were asked for."""
    paths: list[str] = []
    end = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            paths.append(self.path.partition("?")[0].rpartition("/2.0/mlflow/")[2])
            if len(paths) == 1:
                self._answer(200, {"experiments": []})
            elif behaviour == "hangs":
                end.wait(60)
            elif behaviour == "drips":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while not end.wait(0.3):
                    self.wfile.write(b" ")
            else:
                self._answer(500, {"error_code": "INTERNAL_ERROR"})

        def do_GET(self) -> None:
            self.do_POST()

        def _answer(self, code: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            end.set()
            server.shutdown()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("hangs", "no answer"), ("drips", "no answer to get_.* within"), ("fails", "too many 500 error responses")],
)
def test_a_server_that_stops_to_answer_is_an_error(
    behaviour: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with tracking_server(behaviour) as (uri, paths):
        registry = Registry(RegistryConfig(name="m", tracking_uri=uri))
        with pytest.raises(RegistryError, match=rf"MLflow store {uri}: .*{reason}"):
            registry.resolve("champion")
        assert len(paths) > 1
    waits = [record.getMessage() for record in caplog.records if "waiting for MLflow" in record.getMessage()]
    if behaviour == "drips":
        assert len(waits) == 1
        assert f"{uri} to answer get_model_version_by_alias, up to 6 s" in waits[0]


def test_slow_calls_in_a_row_share_a_deadline_and_a_missed_one_shortens_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    calls = Calls("http://tracking.example")
    assert calls._limit() == 60
    calls._slow_seconds = 80.0
    assert calls._limit() == 40
    calls._slow_seconds = 200.0
    assert calls._limit() == 5
    assert calls.run("quick", lambda: 7) == 7
    assert calls._limit() == 60
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.1")
    with pytest.raises(TimeoutError, match="no answer to sleep within"):
        calls.run("sleep", time.sleep, 2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert calls._limit() == 5


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(KeyError, match="a"):
        Calls("http://tracking.example").run("look", {}.__getitem__, "a")
