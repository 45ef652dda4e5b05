"""The guide for Python runs from its first cell to its last, and shows videos."""

import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_notebook_of_the_guide_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = shutil.copy(ROOT / "docs/guide/python.ipynb", tmp_path)
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the page is kept without outputs"
    done = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [out.data for cell in done.cells for out in cell.get("outputs", ()) if "data" in out]
    assert sum("<video" in data.get("text/html", "") for data in shown) == 3
    assert (tmp_path / "red.mp4").stat().st_size > 1000
    printed = [out.text for cell in done.cells for out in cell.get("outputs", ()) if "text" in out]
    assert any("--size=60x64" in text for text in printed)
