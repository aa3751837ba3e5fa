"""List docstrings and messages that break the language rules of CONTRIBUTING.md.

`python -m tests.words [PATH ...]` prints `file:line: problem` for each, and their number. The exit status is 1 if there
is any.

The first line of a docstring begins with an imperative verb ("Return") or a noun phrase. A message is a full sentence:
"sample_rate=1.5 must be in (0, 1]", not "sample_rate=1.5: must be ..." and not "sample_rate=1.5: a share is needed".
The rules are lists of words, so that a good sentence passes and most fragments are found.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("heads", "backbones", "data", "experiments", "tests")


def words(text: str) -> set[str]:
    return set(text.split())


# These begin neither an imperative sentence nor a noun phrase.
NEVER_FIRST = words(
    """of as what where which how by those these that likewise besides beside there so whether when while whoever if
    whatever because since although though until after before in on at to from for with without into under over above
    below between around against through also and or but nor not here now again only otherwise elsewhere it they he we
    you is are was were be has had does did must may can cannot could would should once nothing nobody none inside
    outside within during like unlike than then too neither whose whom why"""
)
# "Returns" is refused for "Return". A word that is also a plural noun, "Checks", is refused before an object only.
VERBS = words(
    """add allocate allow append apply ask assemble assign avoid begin bring build choose clear close collect combine
    compare compose compute configure convert create decide decode delete describe detach detect discard divide do drop
    embed encode ensure evaluate examine exit fetch fill find follow free freeze gather get give go handle have hold
    ignore initialize insert instantiate join judge keep leave let make open parse prepare prevent produce put raise
    read receive refuse reject release remove render repeat replace resolve restore resume return round save say see
    select send serve skip take tell think translate try unpack validate verify watch write yield"""
)
ALSO_NOUNS = words(
    """answer call change check copy count cut deal draw end guard help index kill label list load lock log look map
    mark mask measure merge move name need note order pass pick plan plot print probe query record report reset run
    sample scale score search set shard show sort split start step stop store stream sum test time trace train turn
    update use view wait warn work wrap"""
)
OBJECTS = words("a all an any both each every everything how if it its no one some that the them this what whether")

WITHOUT_SUBJECT = re.compile(
    r"(is|are|was|were|has|have|holds?|must|cannot|can|may|needs?|belongs?|lies|takes?|gives?|ends?|applies|does|do|"
    r"not|no|neither|none|nobody|nothing|only|of|it is)\b"
)
FINITE_VERB = re.compile(
    r"\b(is|are|was|were|has|have|had|must|cannot|can|may|will|needs?|does|do|did|takes?|contains?|holds?|lies|exceeds?|"
    r"gives?|belongs?|applies|apply|uses?|refuses?|expects?|exists?|use|give|run|[a-z]+ed)\b|[a-z]{3,}s\b|\{\}"
)
NAME_VALUE = re.compile(r"^(?:[\w.{}\[\]+-]*=(?:\{\}|\S+)|\{\}|[\w.]+ \{\}|\{\}, line \{\}): (.*)", re.DOTALL)
NEEDED = re.compile(r"\b(is|are) needed\b")
RAISED = ("Error", "Exit", "Warning", "Exception", "exit", "warn", "error", "fail")


def docstring_problem(line: str) -> str:
    """Return what is wrong with the first line of a docstring, "" if nothing is."""
    if not line[0].isalpha():
        return ""
    first, following = re.findall(r"([a-z'-]+) ?([a-z'-]*)", line.lower())[0]
    if first in NEVER_FIRST:
        return f"docstring begins with {line.split()[0]!r}"
    stems = {first[:-1], first[:-2], first[:-3] + "y"} if first.endswith("s") else set()
    if stems & VERBS or (stems & ALSO_NOUNS and following in OBJECTS):
        return f"docstring begins with {line.split()[0]!r}; use the imperative"
    return ""


def message_problem(message: str) -> str:
    """Return what is wrong with a message in which {} replaces values, "" if nothing is."""
    match = NAME_VALUE.match(message)
    if not match:
        return ""
    sentence = re.split(r"[;.] ", match[1])[0]
    if WITHOUT_SUBJECT.match(sentence) or NEEDED.search(sentence) or not FINITE_VERB.search(sentence):
        return f"message without a subject: {message!r}"
    return ""


def text(node: ast.expr) -> str:
    """Return the text of an expression, with {} for every value that is known at run time only."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    return "{}"


def problems(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (ast.get_docstring(node) or "").splitlines()
            if lines and (problem := docstring_problem(lines[0])):
                yield node.body[0].lineno, problem
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).split(".")[-1]
            if name.endswith(RAISED) and (problem := message_problem(text(node.args[0]))):
                yield node.lineno, problem


def main(arguments: list[str]) -> int:
    """Print all problems and their number; return the exit status."""
    paths = [Path(argument) for argument in arguments] or [ROOT / folder for folder in FOLDERS]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    found = [f"{file}:{line}: {problem}" for file in files for line, problem in sorted(problems(file))]
    print("\n".join([*found, f"{len(found)} problems"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
