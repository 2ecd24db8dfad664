"""Folders of scores, compared byte by byte."""

import hashlib
import json
from pathlib import Path


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of each file in a folder, of manifests without the time and the run that wrote them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(_lasting(path)).hexdigest() for path in files}


def _lasting(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_text())
    return json.dumps(content | {"written_at": None, "run_id": None}).encode()
