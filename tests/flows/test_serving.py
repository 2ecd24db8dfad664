"""A registered version elsewhere: behind MLflow's scoring server, and as ONNX."""

import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from flow import HORIZON, NAME, SERIES, TRAIN, Store, panel, refuse, succeed
from polars.testing import assert_frame_equal
from services import scoring

import forecast as fc
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
    assert around["head"] == "quantile"
    assert around["inputs"]["known"]["columns"] == [
        *(f"time_of_day_{wave}" for wave in ()),
        *around["inputs"]["known"]["columns"],
    ]
