"""Networks that are written down for others to use: tensors, and a card that says what they are."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch

from forecast.data.files import write_bytes_atomic, write_text_atomic
from forecast.errors import ArtifactError
from forecast.models.universal.network import LEVELS, PATCH, Shape, UniversalNetwork

FORMAT: Final = 1
MAX_BYTES: Final = 3_000_000
"""Of the tensors. Those that take more in 32 bits are written in 16."""


def write_checkpoint(network: UniversalNetwork, folder: Path, name: str, facts: dict[str, Any]) -> Path:
    """Write `name.safetensors` and its card `name.json` into a folder, and return the path of the card.

    The card has the SHA-256 of the tensors, the shape of the network, and `facts`.
    Raises ArtifactError if the tensors take more than `MAX_BYTES` in 16 bits.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    content = safetensors.torch.save(tensors)
    if len(content) > MAX_BYTES:
        content = safetensors.torch.save({key: value.half() for key, value in tensors.items()})
    if len(content) > MAX_BYTES:
        raise ArtifactError(
            f"{name}: {len(content):,} bytes in 16 bits, and a checkpoint may have {MAX_BYTES:,}; choose a smaller "
            "pretrain.hidden_size"
        )
    card = {
        "format": FORMAT,
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(value.numel() for value in tensors.values()),
        "shape": network.shape._asdict(),
        "patch": PATCH,
        "levels": LEVELS,
        **facts,
    }
    write_bytes_atomic(content, folder / f"{name}.safetensors")
    write_text_atomic(json.dumps(card, indent=2) + "\n", folder / f"{name}.json")
    return folder / f"{name}.json"


def read_checkpoint(path: Path) -> tuple[UniversalNetwork, dict[str, Any]]:
    """Return the network of a card, in 32 bits, and the card.

    Raises ArtifactError if a file is not there or not readable, if the tensors are not those of the card, or if the
    card is of a later format.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        content = path.with_suffix(".safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"can't read the checkpoint {path}: {error}") from None
    if card.get("format") != FORMAT:
        raise ArtifactError(f"{path}: format {card.get('format')}, this version of gatecast reads {FORMAT}; update it")
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.get("sha256"):
        raise ArtifactError(
            f"{path.with_suffix('.safetensors')}: its SHA-256 is {digest}, the card says {card.get('sha256')}: it is "
            "damaged or another file; take both files from the same place again"
        )
    network = UniversalNetwork(Shape(**card["shape"]))
    try:
        tensors = safetensors.torch.load(content)
        network.load_state_dict({key: value.to(torch.float32) for key, value in tensors.items()})
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{path}: tensors do not fit the shape of the card: {error}") from None
    return network.eval(), card
