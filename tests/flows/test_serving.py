"""A registered version elsewhere: behind MLflow's scoring server, and as ONNX."""

import json
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import safetensors.numpy
import torch
from flow import END, NAME, SERIES, TRAIN, Store, panel, refuse, succeed
from polars.testing import assert_frame_equal
from services import scoring

import forecast as fc
from forecast.config import SourceConfig
from forecast.data.windows import windows_at
from forecast.models.inputs.batch import PanelTensors

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
        assert_frame_equal(served, expected, check_dtypes=False, rel_tol=1e-9)
        assert set(served["model_version"]) == {"2"}
        bad = table.assign(target=table["target"].where(table["series_id"] != "s03"))
        code, answer = ask(address, bad)
        assert code == 200, answer
        rows = [row for row in answer["predictions"] if row["reason"]]
        nothing = {"timestamp": None, "step": None, "mean": None, "q10": None, "source": None}
        assert [row | nothing for row in rows] == rows
        assert [(row["series_id"], row["reason"]) for row in rows] == [("s03", "no observed target")]
        assert [row["step"] for row in answer["predictions"][:3]] == [1, 2, 3]
        code, answer = ask(address, bad, {"rejects": "fail"})
        assert (code, "no observed target: 1, e.g. s03" in answer["message"]) == (400, True)
        code, answer = ask(address, bad, {"rejects": "omit"})
        assert (code, len(answer["predictions"])) == (200, 19 * 12)
        code, answer = ask(address, bad, {"rejects": "maybe"})
        assert (code, "'include', 'omit' or 'fail'" in answer["message"]) == (400, True)
        code, answer = ask(address, table.drop(columns="target"))
        assert code == 400
        assert "target" in answer["message"]
        code, answer = ask(address, table.assign(timestamp="yesterday"))
        assert code == 400
        assert "yesterday" in answer["message"].rpartition("Error: ")[2]


def ask(address: str, table: Any, params: dict[str, str] | None = None) -> tuple[int, Any]:
    """Return code and content of the answer to a table. What is no JSON, such as NaN, is an error."""
    table = table.astype(object).where(table.notna(), None)
    content = json.dumps({"dataframe_split": table.to_dict("split", index=False), "params": params or {}}).encode()
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read(), parse_constant=refused)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def test_a_loaded_model_gives_what_is_scored_and_tells_what_is_rejected(promoted: Store) -> None:
    import mlflow

    closed = (pl.col("series_id") != "s05") | (pl.col("timestamp") < END - timedelta(days=4))
    infinite = (pl.col("series_id") == "s06") & (pl.col("timestamp") == END - timedelta(hours=3))
    table = panel().filter(closed).with_columns(target=pl.when(infinite).then(float("inf")).otherwise("target"))
    promoted.score(promoted.write(table))
    expected, rejects = promoted.forecasts().to_pandas(), promoted.rejects().sort("series_id")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    made = model.predict(table.to_pandas())
    pd.testing.assert_frame_equal(
        made[made["reason"].isna()].drop(columns="reason"), expected, check_dtype=False, rtol=1e-9
    )
    told = made[made["reason"].notna()].sort_values("series_id")
    assert told[["series_id", "timestamp", "reason"]].values.tolist() == [
        list(row) for row in rejects.select("series_id", "timestamp", "reason").iter_rows()
    ]
    assert told["reason"].tolist() == ["ended", "target not finite"]
    assert told[["mean", "q10", "step", "source"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(model.predict(table.to_pandas(), params={"rejects": "omit"}), expected, rtol=1e-9)
    whole = model.predict(table.to_pandas(), params={"max_age": "none", "rejects": "omit"})
    assert set(whole["series_id"]) == set(SERIES)
    assert "reason" not in model.predict(panel().to_pandas()).columns


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
