"""Execution of the notebook of the documentation: `python -m tests.notebook`, in about two minutes.

All cells must run, and the comparison must be in the output. The notebook is not changed.
"""

import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def main() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    if any(cell.get("outputs") for cell in notebook.cells):
        sys.exit(f"error: {PATH} has outputs; clear them before you commit it")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    html = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    if not any("<iframe" in text for text in html) or not any("val/rank1" in text for text in html):
        sys.exit(f"error: the outputs of {PATH} lack the comparison or the summary of a run")
    print(json.dumps({"cells": len(notebook.cells), "outputs": len(html)}))


if __name__ == "__main__":
    main()
