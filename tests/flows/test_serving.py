"""A registered version elsewhere: behind MLflow's scoring server, and as ONNX."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
import torch
from flow import NAME, SERIES, TRAIN, Store, panel, refuse, succeed
from polars.testing import assert_frame_equal
from services import scoring

import forecast as fc
from forecast.config import SourceConfig
from forecast.data.windows import windows_at
from forecast.models.batch import PanelTensors

VERSION = ("registry.alias=champion", f"registry.name={NAME}")
QUANTILES = [f"q{level}0" for level in range(1, 10)]


def test_mlflow_serves_what_is_scored(promoted: Store) -> None:
    promoted.score()
    # As JSON, timestamps are text.
    table = panel().with_columns(pl.col("timestamp").dt.to_string("iso")).to_pandas()
    with scoring(f"models:/{NAME}@champion") as address:
        code, answer = ask(address, table)
        assert code == 200, answer
        served = pl.DataFrame(answer["predictions"]).with_columns(
            pl.col("timestamp", "cutoff").str.to_datetime(time_unit="us")
        )
        expected = promoted.forecasts()
        assert_frame_equal(
            served.drop("model_version"), expected.drop("model_version"), check_dtypes=False, rel_tol=1e-9
        )
        code, answer = ask(address, table.drop(columns="target"))
        assert code == 400
        assert "target" in answer["message"]
        code, answer = ask(address, table.assign(timestamp="yesterday"))
        assert code == 400
        assert "yesterday" in answer["message"].rpartition("Error: ")[2]


def ask(address: str, table: Any) -> tuple[int, Any]:
    """Return code and content of the answer to a table."""
    content = json.dumps({"dataframe_split": table.to_dict("split", index=False)}).encode()
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_an_exported_network_and_its_json_give_the_forecasts_without_us(promoted: Store) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")
    target = promoted.folder / "exported"
    succeed("models", "export", *VERSION, f"output.path={target}", "export.format=onnx")
    around = json.loads((target / "onnx.json").read_text())
    assert (around["head"], around["value"]) == ("quantile", "location + scale * quantile")

    loaded = fc.load(target).open(SourceConfig(path=str(promoted.table)))
    windows = windows_at(loaded.panel, loaded.panel.last_index)
    sizes = {"context": around["context_length"], "span": 1, "horizon": around["horizon"]}
    series, cutoff = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
    batch = PanelTensors(loaded.panel).gather(series, cutoff, cutoff + 1, **sizes)._asdict()
    given = {name: batch[name].numpy() for name in around["inputs"]}
    for name, field in around["inputs"].items():
        assert given[name].shape == (len(SERIES), *field["shape"][1:])
        assert len(field.get("columns", ())) in (0, given[name].shape[-1])
    session = onnxruntime.InferenceSession(target / "model.onnx", providers=["CPUExecutionProvider"])
    found = dict(zip(around["outputs"], session.run(around["outputs"], given), strict=True))

    # What the JSON says of a fine-tuned model, in NumPy.
    names = json.loads((target / "bank.json").read_text())["series_id"]
    bank = safetensors.numpy.load_file(target / "bank.safetensors")
    quantiles = found["arguments"].copy()
    for row, name in enumerate(names):
        at = SERIES.index(name)
        recent = found["window"][at, -(bank["weight"].shape[1] - 1 - found["state"].shape[1]) :]
        shift = np.concatenate([[1.0], recent, found["state"][at]]) @ bank["weight"][row]
        middle = quantiles[at, :, 4:5]
        quantiles[at] = middle + bank["width"][row] * (quantiles[at] - middle) + shift[:, None]
    values = found["location"][:, None, None] + found["scale"][:, None, None] * quantiles
    promoted.score()
    scored = promoted.forecasts()
    assert "fine_tuned" in set(scored["source"])
    np.testing.assert_allclose(values.reshape(-1, 9), scored.select(QUANTILES), rtol=1e-5)


@pytest.mark.usefixtures("store")
def test_a_model_that_is_no_graph_leaves_nothing_behind(tmp_path: Path) -> None:
    table = tmp_path / "panel.parquet"
    panel().write_parquet(table)
    decoder = ("model.decoder=autoregressive", "model.n_paths=4", "fit.max_steps=10")
    succeed("train", f"registry.name={NAME}", f"data.path={table}", *TRAIN, *decoder)
    target = tmp_path / "exported"
    version = ("registry.alias=pretrained", f"registry.name={NAME}")
    message = refuse(2, "models", "export", *version, f"output.path={target}", "export.format=onnx")
    assert message.startswith("model.decoder: an autoregressive model samples its forecasts")
    assert not target.exists()
    score = ("score", *version, f"data.path={table}", f"output.path={tmp_path / 'out'}")
    assert "model.decoder: an autoregressive" in refuse(2, *score, "score.runtime=onnx")
    succeed(*score, "score.runtime=auto", "output.n_samples=3")
