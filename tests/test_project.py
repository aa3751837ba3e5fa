"""The project as users receive it: README examples, wheels, and the imports of heads."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from heads import PartialFC, __version__
from tests import words

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = (ROOT / "pyproject.toml", ROOT / "heads" / "pyproject.toml")
MODULES = sorted((ROOT / "heads").rglob("*.py"))
READMES = (ROOT / "README.md", ROOT / "heads" / "README.md")
BLOCKS = [code for path in READMES for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]
EXAMPLES = [code for code in BLOCKS if "experiments.api" not in code]  # tests/experiments/test_api.py runs the other


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_examples_run(number):
    torch.manual_seed(0)
    assert EXAMPLES
    space: dict[str, object] = {}
    exec(compile(EXAMPLES[number].replace("headcount.heads", "heads"), "README.md", "exec"), space)
    losses = space["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("document", "module", "option"),
    [
        ("CONTRIBUTING.md", "heads.margins.li_arcface", lambda code: {"margin": code["LiArcFace"](s=16, m=0.2)}),
        ("docs/architecture.md", "heads.objectives.siglip", lambda code: {"objective": code["SigLIP"]()}),
    ],
)
def test_margin_and_objective_of_the_documentation_train(document, module, option):
    code, *_ = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    space: dict[str, Any] = {"__name__": module, "__package__": module.rpartition(".")[0]}
    exec(compile(code, document, "exec"), space)
    torch.manual_seed(0)
    head = PartialFC(1000, 8, **option(space))
    optimizer = head.optimizer(lr=0.1)
    losses = []
    for _ in range(5):
        losses.append(head(torch.ones(4, 8), torch.zeros(4, dtype=torch.int64)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def wheel(project: Path, target: Path) -> zipfile.ZipFile:
    """Build the wheel of a copy of the project, with the packages of this environment."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", target]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, project], check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def folders(archive: zipfile.ZipFile) -> dict[str, set[str]]:
    """Return the names of the files of a wheel by their top folder."""
    names = [name.split("/", 1) for name in archive.namelist()]
    return {folder: {name for top, name in names if top == folder} for folder, _ in names}


def test_wheels_offer_heads_and_nothing_else(tmp_path):
    """`pip install .` and `pip install ./heads` install the same modules; only their dependencies differ."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("heads", "backbones", "data", "conf", "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    modules = {path.relative_to(source).as_posix() for path in (source / "heads").rglob("*.py")} | {"heads/py.typed"}
    with wheel(source, tmp_path / "all") as archive:
        assert folders(archive).keys() == {"headcount", f"headcount-{__version__}.dist-info"}
        assert folders(archive)["headcount"] == modules
    with wheel(source / "heads", tmp_path / "alone") as archive:
        about = f"headcount_heads-{__version__}.dist-info"
        assert folders(archive).keys() == {"headcount", about}
        assert folders(archive)["headcount"] == modules
        required = re.findall(
            r"Requires-Dist: ([\w-]+)[^;\n]*$", archive.read(f"{about}/METADATA").decode(), re.MULTILINE
        )
        assert required == ["torch", "numpy"]
        archive.extractall(tmp_path / "site")
    check = "import sys; sys.path.insert(0, 'site'); from headcount.heads import PartialFC; print(PartialFC(10, 4))"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "sample_rate=0.1" in done.stdout


def test_both_projects_require_the_same_torch_and_numpy():
    everything, heads = (tomllib.loads(path.read_text())["project"] for path in PROJECTS)
    assert set(heads["dependencies"]) < set(everything["dependencies"])
    assert heads["requires-python"] == everything["requires-python"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT / "heads").as_posix())
def test_heads_import_torch_and_numpy_only(path):
    """The library of an index is imported when the index is built."""
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed


@pytest.mark.parametrize(
    ("line", "is_good"),
    [
        ("Return the bytes of optimizer state per row.", True),
        ("Draw classes without replacement.", True),
        ("Checks of a config before a run starts.", True),
        ("Batches of one epoch, in order.", True),
        ("Of what an optimizer remembers.", False),
        ("Whether a row was written.", False),
        ("Returns the rows.", False),
        ("Checks that the rows are finite.", False),
    ],
)
def test_first_lines_of_docstrings_are_judged(line, is_good):
    assert (words.docstring_problem(line) == "") == is_good


@pytest.mark.parametrize(
    ("message", "is_good"),
    [
        ("sample_rate={} must be in (0, 1]; 0.1 samples a tenth of the classes", True),
        ("{} does not exist; give the folder of a run", True),
        ("{}: {}", True),
        ("store_dir={}: another head has {} open", True),
        ("sample_rate={}: must be in (0, 1]", False),
        ("root={}: is of lists of pairs", False),
        ("noise.flip={}: a share in [0, 1] is needed", False),
        ("capacity={}: one slot at least and fewer than 2^29", False),
    ],
)
def test_messages_are_judged(message, is_good):
    assert (words.message_problem(message) == "") == is_good


def test_problems_are_listed_with_their_place(tmp_path, capsys):
    (tmp_path / "bad.py").write_text('"""Good."""\n\n\ndef f(x):\n    raise ValueError(f"x={x}: is negative")\n')
    assert words.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'bad.py'}:5: message without a subject: 'x={{}}: is negative'",
        "1 problems",
    ]
