"""The project as others meet it: README, wheel, what heads may import."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_examples_run(number):
    torch.manual_seed(0)
    assert EXAMPLES
    space: dict[str, object] = {}
    exec(compile(EXAMPLES[number].replace("headcount.heads", "heads"), "README.md", "exec"), space)
    losses = space["losses"]
    assert losses[-1] < losses[0]


def test_wheel_offers_heads_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("heads", "backbones", "data", "conf", "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(tmp_path / "site")
    assert top == {"headcount", f"{wheel.name.split('-')[0]}-{wheel.name.split('-')[1]}.dist-info"}
    check = "import sys; sys.path.insert(0, 'site'); from headcount.heads import PartialFC; print(PartialFC(10, 4))"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "sample_rate=0.1" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "heads").glob("*.py")), ids=lambda path: path.name)
def test_heads_import_torch_and_numpy_only(path):
    """An index imports its library when it is built."""
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed
