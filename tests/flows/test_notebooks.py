"""The notebooks run from top to bottom, in one kernel that imports the libraries once, and are kept without outputs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    manager = KernelManager()
    with pytest.MonkeyPatch.context() as monkeypatch:
        # The kernel is started by the first notebook, with the environment of that moment.
        monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.delenv("GATECAST_LEDGER", raising=False)
        yield manager
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_draws(name: str, kernel: KernelManager, store_template: Path, tmp_path: Path) -> None:
    shutil.copy(NOTEBOOKS / "panel.py", tmp_path)
    shutil.copy(store_template, tmp_path / "mlflow.db")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    alone = nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}")
    notebook.cells.insert(0, alone)
    NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, cell.source
            assert cell.execution_count is None
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert text == nbformat.writes(notebook, indent=1) + "\n"
