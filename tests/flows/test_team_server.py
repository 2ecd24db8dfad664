"""MLflow's server with logins, workspaces and webhooks: the verbs there, and scores after each move of the champion."""

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import mlflow
import polars as pl
import pytest
import services
from flow import NAME, SERIES, panel, refuse, succeed
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

MODEL = f"registry.name={NAME}"
USER, PASSWORD, SECRET = "admin", "s3cret-for-a-test", "shared-secret"
AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[str]:
    """The address of a server with logins and workspaces, whose webhooks may go to this machine."""
    pytest.importorskip("flask_wtf")
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(store_template.read_bytes())
    (folder / "auth.ini").write_text(AUTH.format(folder=folder, user=USER, password=PASSWORD))
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(bytes(32)).decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    options = ("--app-name", "basic-auth", "--enable-workspaces")
    with services.mlflow(folder, *options, environment=settings) as address:
        yield address


@pytest.fixture
def client(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """A client of the server, in a workspace, which is also that of the verbs."""
    login = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    stores = {"MLFLOW_TRACKING_URI": server, "GATECAST_CACHE": str(tmp_path / "cache"), "MLFLOW_WORKSPACE": "team"}
    for name, value in {**login, **stores}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    panel().filter(pl.col("series_id") < "s06").write_parquet("panel.parquet")
    client = MlflowClient(server, server)
    client.create_workspace("team")
    yield client
    mlflow.set_tracking_uri(None)


def receiver() -> ModuleType:
    """Return the recipe in the documentation as a module."""
    file = Path(__file__).parents[2] / "docs" / "champion_webhook.py"
    spec = importlib.util.spec_from_file_location("champion_webhook", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(test: Callable[[], bool], pause: float = 0.02) -> None:
    """Wait until something is true, for minutes: the machine may be busy."""
    deadline = time.monotonic() + 300
    while not test() and time.monotonic() < deadline:
        time.sleep(pause)
    assert test()


def send(address: str, content: object, secret: str, delivery: str, moment: float) -> int:
    """Send a webhook as MLflow does; return the status of the answer."""
    body, stamp = json.dumps(content).encode(), str(int(moment))
    digest = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"v1,{base64.b64encode(digest).decode()}",
    }
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_champion_of_a_team_is_scored_by_a_webhook(
    client: MlflowClient, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = "data.path=panel.parquet"
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        assert "MLFLOW_TRACKING_PASSWORD" in refuse(4, "models", "list", MODEL)
    small = ("window.horizon=12", "window.context_length=48", "fit.max_steps=0", "model.hidden_size=4")

    score = [sys.executable, "-m", "pipelines.cli", "score", MODEL, data, f"output.path={tmp_path / 'scores'}"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    recipe = receiver()
    with recipe.Receiver(("127.0.0.1", 0), SECRET, NAME, score) as receiving:
        threading.Thread(target=receiving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{receiving.server_port}"
        event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
        client.create_webhook("score", address, [event], secret=SECRET)
        succeed("train", MODEL, data, *small)  # It sets an alias, too, after which nothing is scored.
        succeed("promote", MODEL, "registry.alias=pretrained", "promote.force=true")
        until(lambda: bool(list(tmp_path.glob("scores/manifests/*.json"))))
        experiment = client.get_experiment_by_name(NAME)
        assert experiment
        ended = "tags.job = 'score' and attributes.status = 'FINISHED'"
        until(lambda: bool(client.search_runs([experiment.experiment_id], ended)), pause=0.5)
        receiving.shutdown()
    (manifest,) = (json.loads(file.read_text()) for file in tmp_path.glob("scores/manifests/*.json"))
    assert (manifest["model"], manifest["model_version"]) == (NAME, "1")
    assert pl.read_parquet(tmp_path / "scores" / "forecasts")["series_id"].unique().sort().to_list() == SERIES[:6]
    assert client.get_model_version_by_alias(NAME, "champion").version == "1"
    # It is all in the workspace, and served by the server.
    assert experiment.artifact_location.startswith("mlflow-artifacts:/workspaces/team/")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "default")
    assert MlflowClient(server, server).get_experiment_by_name(NAME) is None


def test_only_new_signed_requests_about_the_champion_run_the_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append = [sys.executable, "-c", f"open({str(log)!r}, 'a').write('x')"]
    content = {
        "entity": "model_version_alias",
        "action": "created",
        "data": {"name": NAME, "alias": "champion", "version": "2"},
    }
    others = [
        {**content, "action": "deleted"},
        {**content, "data": {**content["data"], "alias": "challenger"}},  # type: ignore[dict-item]
        {**content, "data": {**content["data"], "name": "other"}},  # type: ignore[dict-item]
        [],
    ]
    now = time.time()
    with receiver().Receiver(("127.0.0.1", 0), SECRET, NAME, append) as receiving:
        threading.Thread(target=receiving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{receiving.server_port}"
        assert send(address, content, "guessed", "a", now) == 401
        assert send(address, content, SECRET, "b", now - 3600) == 401
        assert [send(address, other, SECRET, f"other {number}", now) for number, other in enumerate(others)] == [
            202
        ] * 4
        assert send(address, content, SECRET, "c", now) == 202
        until(lambda: log.exists() and log.read_text() == "x")
        assert send(address, content, SECRET, "c", now) == 202
        assert send(address, content, SECRET, "d", now) == 202
        until(lambda: log.read_text() != "x")
        receiving.shutdown()
    assert log.read_text() == "xx"
