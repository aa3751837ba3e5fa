"""Pages of the site that are not files of docs/: the README, two others beside it, and the reference."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ELSEWHERE = ("CITATION.cff", "docs/notebook.ipynb")  # files that are no pages
GROUPS = (
    ("Heads", "Head"),
    ("Margins", "Margin"),
    ("Objectives", "Objective"),
    ("Indexes", "Index"),
    ("Row optimizers", "RowOptimizer"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=of_the_site((ROOT / name).read_text(), from_docs=False)))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return markdown if page.file.src_uri in (*PAGES.values(), "reference.md") else of_the_site(markdown, from_docs=True)


def of_the_site(markdown: str, *, from_docs: bool) -> str:
    """Return a page with the links that it has on the site."""
    for name in ELSEWHERE:
        markdown = re.sub(rf"\[([^\]]*)\]\((?:\.\./)?{re.escape(name)}\)", r"\1", markdown)
    prefix = r"\.\./" if from_docs else ""
    for name, page in PAGES.items():
        markdown = re.sub(rf"\]\({prefix}{name}", f"]({page}", markdown)
    return markdown if from_docs else markdown.replace("](docs/", "](")


def reference() -> str:
    """Return a page with the docstring of each public name of the wheel."""
    sys.path.insert(0, str(ROOT))
    import heads

    lines = ["# Reference", "", "The public names of `headcount.heads`, which is `heads` in a checkout.", ""]
    rest = list(heads.__all__)
    for title, base in GROUPS:
        kind = getattr(heads, base)
        names = [
            name for name in rest if isinstance(getattr(heads, name), type) and issubclass(getattr(heads, name), kind)
        ]
        names = [base, *sorted(name for name in names if name != base)]
        rest = [name for name in rest if name not in names]
        lines += section(title, names)
    functions = [f"fidelity.{name}" for name in heads.fidelity.__all__]
    return "\n".join(lines + section("Other names", [*rest, *functions]))


def section(title: str, names: list[str]) -> list[str]:
    """Return the lines of a group. mkdocstrings replaces those that begin with `:::`."""
    return [f"## {title}", "", *(line for name in names for line in (f"::: heads.{name}", ""))]
