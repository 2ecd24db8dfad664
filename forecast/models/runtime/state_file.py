"""The state of a job on disk, to go on from after a kill: safetensors and JSON, no pickle."""

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from forecast.data.files import make_private
from forecast.errors import ConfigError, OutputError, listing

_FORMAT = "1"


def write_state(
    path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write the state of a job with some settings, whole or not at all, for its owner alone.

    Raises OutputError if the disk refuses it.
    """
    unfinished = path.with_suffix(f".{socket.gethostname()[:40]}.{os.getpid()}.unfinished")
    header = {"format": _FORMAT, "settings": json.dumps(settings), "state": json.dumps(state)}
    content = {name: values.detach().contiguous() for name, values in tensors.items()}
    try:
        make_private(unfinished)
        safetensors.torch.save_file(content, unfinished, header)
        unfinished.chmod(0o600)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise OutputError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error


def read_state(
    path: Path, settings: Mapping[str, Any] | None, *, key: str, job: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state that `write_state` wrote.

    Raises ConfigError that names the setting `key` if that was a `job` with other `settings`, or can't be read. None
    accepts any settings.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{key}: {path} is not readable ({error}); delete it, or choose another folder") from None
    if header.get("format") != _FORMAT:
        raise ConfigError(f"{key}: {path} is of another version of gatecast; delete it, or choose another folder")
    before = json.loads(header["settings"])
    now = before if settings is None else json.loads(json.dumps(settings))
    different = [
        f"{name} was {_text(before.get(name))}, is {_text(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if different:
        raise ConfigError(
            f"{key}: {path.parent} holds another {job}, which was cut short: {listing(different)}; choose another "
            "folder, or delete that one to give it up"
        )
    return tensors, json.loads(header["state"])


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
