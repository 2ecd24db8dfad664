"""What a process does that moves the champion alias when it is told to, for tests of two at once.

A message is a tuple: ("look", URI, NAME, PAUSES), then ("promote", NUMBER), ("rollback", REASON) or
("register", FOLDER, ALIAS). What is done is judged by what was there at the look. A process that pauses answers
"paused" before the alias moves, with the lock in its hands, and waits for another message.
"""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from forecast.config import Config, RegistryConfig
from forecast.errors import GatecastError
from forecast.tracking.champions import Champions
from forecast.tracking.registry import Registry


class Pausing:
    """The real client, which waits for a message before it moves an alias."""

    def __init__(self, client: MlflowClient, connection: Connection) -> None:
        self.client, self.connection = client, connection

    def __getattr__(self, name: str) -> Any:
        if name == "set_registered_model_alias":
            self.connection.send(["paused"])
            self.connection.recv()
        return getattr(self.client, name)


def act(registry: Registry, champions: Champions, verb: str, *values: Any) -> object:
    if verb == "rollback":
        return registry.rollback(values[0], basis=champions)[1].number
    if verb == "register":
        folder, alias = values
        with registry.run("train", Config()) as run:
            return registry.register(run, Path(folder), digest="ab" * 32, tags={}, alias=alias).number
    return registry.promote(champions.versions[values[0]], basis=champions)


def move_aliases(connection: Connection) -> None:
    """Answer messages until the process is killed."""
    while True:
        verb, *values = connection.recv()
        if verb == "look":
            uri, name, pauses = values
            registry = Registry(RegistryConfig(name=name, tracking_uri=uri))
            champions = registry.champions()
            if pauses:
                registry._client = Pausing(registry._client, connection)  # type: ignore[assignment]
            connection.send(["ready"])
            continue
        try:
            connection.send(["done", act(registry, champions, verb, *values)])
        except GatecastError as error:
            connection.send([type(error).__name__, str(error)])
