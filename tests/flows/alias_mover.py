"""A process that moves the champion alias when its standard input says so, for tests of two at once.

Each line is a JSON list: ["look", URI, NAME, PAUSES], then ["promote", NUMBER], ["rollback", REASON] or
["register", FOLDER, ALIAS]. What is done is judged by what was there at the look. A process that pauses prints
"paused" before the alias moves, with the lock in its hands, and waits for another line.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from forecast.config import Config, RegistryConfig
from forecast.errors import GatecastError
from forecast.tracking.champions import Champions
from forecast.tracking.registry import Registry


class Pausing:
    """The real client, which waits for a line before it moves an alias."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        if name == "set_registered_model_alias":
            say("paused")
            sys.stdin.readline()
        return getattr(self.client, name)


def say(*words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def act(registry: Registry, champions: Champions, verb: str, *values: Any) -> object:
    if verb == "rollback":
        return registry.rollback(values[0], basis=champions)[1].number
    if verb == "register":
        folder, alias = values
        with registry.run("train", Config()) as run:
            return registry.register(run, Path(folder), digest="ab" * 32, tags={}, alias=alias).number
    return registry.promote(champions.versions[values[0]], basis=champions)


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        verb, *values = json.loads(line)
        if verb == "look":
            uri, name, pauses = values
            registry = Registry(RegistryConfig(name=name, tracking_uri=uri))
            champions = registry.champions()
            if pauses:
                registry._client = Pausing(registry._client)  # type: ignore[assignment]
            say("ready")
            continue
        try:
            say("done", act(registry, champions, verb, *values))
        except GatecastError as error:
            say(type(error).__name__, str(error))


if __name__ == "__main__":
    main()
