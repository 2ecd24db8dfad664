"""A bundle from export to forecasts, in a process that has no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flow import NAME, Store, forecast, refuse, succeed, written
from polars.testing import assert_frame_equal

pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")

MODEL = f"registry.name={NAME}"
# The distribution gatecast-score has none of these; pyarrow is only used if it is there.
_SCORE = """
import sys
from pipelines.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "mlflow", "pytorch_lightning", "pandas", "scipy", "matplotlib", "hydra", "safetensors", "sqlalchemy"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
sys.exit(code)
"""


def score_alone(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run `forecast score` in a process of its own, which must not import what bundles do without."""
    command = [sys.executable, "-c", _SCORE, "score", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_scores_as_its_version_does(promoted: Store) -> None:
    bundle = promoted.folder / "bundle"
    done = succeed(
        "models", "export", MODEL, "registry.alias=champion", "export.format=bundle", f"output.path={bundle}"
    )
    assert str(bundle) in done.out
    promoted.score()
    job = f"bundle={bundle}", f"data.path={promoted.table}", f"output.path={promoted.folder / 'alone'}"
    process = score_alone(*job)
    assert process.returncode == 0, process.stderr
    assert f"{NAME} v" in process.stdout
    assert " (bundle): " in process.stdout
    assert_frame_equal(promoted.forecasts("alone"), promoted.forecasts(), rel_tol=1e-5, abs_tol=1e-4)
    (manifest,) = (promoted.folder / "alone" / "manifests").glob("*.json")
    (expected,) = (promoted.folder / "out" / "manifests").glob("*.json")
    content, expected_content = (json.loads(path.read_text()) for path in (manifest, expected))
    for key in ("model", "model_version", "model_digest", "trained_until", "series", "rows", "sources"):
        assert content[key] == expected_content[key], key
    again = score_alone(*job)
    assert "all done before, nothing was written" in again.stdout
    assert manifest.read_text() == json.dumps(content, indent=1) + "\n"
    in_process = succeed("score", *job[:2], f"output.path={promoted.folder / 'here'}", "score.horizon=3")
    assert ", 60 rows, " in in_process.out
    assert written(promoted.folder / "here")["step"].max() == 3


def test_mistakes_are_errors_with_their_codes(promoted: Store, tmp_path: Path) -> None:
    table = f"data.path={promoted.table}"
    assert "bundle.json is missing" in refuse(4, "score", f"bundle={tmp_path}", table, f"output.path={tmp_path / 'o'}")
    message = refuse(2, "score", f"bundle={tmp_path}", table, f"output.path={tmp_path / 'o'}", "score.state=s")
    assert "score.state: not for bundles" in message
    assert "registry.alias: unknown key" in refuse(
        2, "score", "bundle=b", table, "output.path=o", "registry.alias=champion"
    )
    assert forecast("score", "bundle=b", "data.path=missing", f"output.path={tmp_path / 'o'}").code == 3
