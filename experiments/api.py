"""Trainings and comparisons from Python, in scripts and notebooks of a checkout.

    from experiments.api import compare, run

    runs = [run(head=head, sample_rate=0.1, seed=seed) for head in ("pfc", "scent") for seed in (0, 1, 2)]
    compare(runs)

A run is the command `python -m experiments.run` in a process of its own, so that it takes the same options, leaves the
same folder, and gives its memory back. A notebook shows a bar while it trains, and tables and plots afterwards.
"""

import html
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from . import compare as comparing
from . import run_files
from .command_line.config_files import CONF
from .command_line.restating import text_of
from .comparing.comparison import WITHIN, Comparison
from .comparing.page import page
from .comparing.runs import Run as Recorded

STEP = re.compile(r"step (\d+)/(\d+)  (.*)")
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
LAST = 40  # lines of output that a failure shows


class Run:
    """A training that has ended, read from its folder.

    Args:
        folder: the folder of the run, with summary.json.

    Attributes:
        folder: the same, absolute.

    Raises:
        ValueError: there is no readable summary.

    Examples:
        >>> found = Run("outputs/DATE/TIME")
        >>> found["val/rank1"], found.curve("train/loss")
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        try:
            self.summary: dict[str, Any] = run_files.summary(self.folder / "summary.json")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is not the folder of a run that has ended ({error})") from None

    def __getitem__(self, name: str) -> Any:
        """Return an entry of the summary, such as `val/rank1` or `status`. Raises KeyError, which lists the entries."""
        if name not in self.summary:
            raise KeyError(f"{name} is not in summary.json of {self.folder}; it has {', '.join(self.summary)}")
        return self.summary[name]

    @cached_property
    def metrics(self) -> dict[str, dict[int, float]]:
        """Values by name and step, from metrics.csv. `pandas.DataFrame(run.metrics)` is a table with a line a step."""
        curves = Recorded(self.folder, self.summary, {}).curves.items()
        return {name: dict(zip(map(int, steps), values.tolist(), strict=True)) for name, (steps, values) in curves}

    def curve(self, name: str) -> dict[int, float]:
        """Return the values of a metric by step. Raises KeyError, which lists the metrics."""
        if name not in self.metrics:
            raise KeyError(f"{name} is not in metrics.csv of {self.folder}; it has {', '.join(self.metrics)}")
        return self.metrics[name]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return _table(self.summary.items(), str(self.folder))


class Page:
    """A comparison of runs, which a notebook shows as a page with plots.

    Attributes:
        comparison: the groups of runs, with their figures and differences.
        html: the page, which needs no network.
    """

    def __init__(self, comparison: Comparison, content: str, height: int):
        self.comparison, self.html, self.height = comparison, content, height

    def save(self, path: str | Path) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html)

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="comparison of heads" style="width: 100%; height: '
            f'{self.height}px; border: 0"></iframe>'
        )


def run(*words: str, folder: str | Path | None = None, **options: Any) -> Run:
    """Train one head, and return its folder, metrics and summary.

    Args:
        words: words of `python -m experiments.run`, such as "trainer.max_steps=400".
        folder: the new folder of the run; outputs/DATE/TIME of the working directory if None.
        options: options by name, such as head="pfc". A dict gives options of a group: trainer={"max_steps": 400}.

    Raises:
        ValueError: an option is refused.
        RuntimeError: the training has failed. The message has the end of its output.
        KeyboardInterrupt: it was interrupted, and has ended with a checkpoint.

    Examples:
        >>> run(head="pfc", sample_rate=0.1, trainer={"max_steps": 400})["val/rank1"]
    """
    folder = Path(folder or f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}").resolve()
    given = [*words, *_words(options), f"hydra.run.dir={text_of(str(folder))}"]
    if any(word in ("-m", "--multirun") for word in words):
        raise ValueError("run() trains one head; call it for each value instead of -m")
    status, output = _start(["-m", "experiments.run", *given])
    if status:
        message = next((line for line in reversed(output) if line.startswith("error: ")), None)
        if message is not None:
            raise ValueError(message.removeprefix("error: "))
        raise RuntimeError(f"the training ended with status {status}:\n" + "\n".join(output))
    return Run(folder)


def compare(
    runs: Iterable[Run | str | Path], *, equal: str = "images", at: float | None = None, within: float = WITHIN,
    height: int = 1200,
) -> Page:  # fmt: skip
    """Print the tables of `python -m experiments.compare`, and return its page.

    Args:
        runs: runs, or folders with runs.
        equal: what is equal between runs: "images", "steps" or "seconds".
        at: the point on that axis; the last that all runs have reached if None.
        within: points within which two heads count as equivalent.
        height: height of the page in a notebook, in pixels.

    Raises:
        ValueError: no run has finished, or an argument does not fit.

    Examples:
        >>> compare([run(head="pfc"), run(head="full")]).save("comparison.html")
    """
    paths = [each.folder if isinstance(each, Run) else Path(each) for each in runs]
    shown = comparing.show(paths, equal, at, within)
    if shown is None:
        raise ValueError(f"no run has finished among {', '.join(map(str, paths))}")
    return Page(shown[0], page(*shown), height)


def _words(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield options as words. The keys of a schedule {step: value} are numbers."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
            yield from _words(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={text_of(str(value) if isinstance(value, Path) else value)}"


def _start(words: list[str]) -> tuple[int, list[str]]:
    """Run a command, show its output, and return its status and its last lines."""
    # A notebook's kernel asks for colours, which would turn lines of progress into a bar of a terminal.
    environment = {name: value for name, value in os.environ.items() if name not in COLOURS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CONF.parent), os.environ.get("PYTHONPATH")]))
    output: deque[str] = deque(maxlen=LAST)
    bar = Bar()
    # In a session of its own, so that an interrupt reaches it once, from here.
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output.append(line.rstrip("\n"))
                bar.show(output[-1])
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # it saves a checkpoint, and ends
            output.extend(line.rstrip("\n") for line in process.stdout)
            process.wait()
            raise
    bar.end()
    return process.returncode, list(output)


class Bar:
    """The progress of a run: a bar in a notebook, and the lines of the command elsewhere."""

    def __init__(self) -> None:
        self.handle: Any = None
        if "ipykernel" in sys.modules:
            from IPython.display import HTML, display

            self.html = HTML
            self.handle = display(HTML("starting"), display_id=True)

    def show(self, line: str) -> None:
        if self.handle is None:
            print(line, flush=True)
        elif match := STEP.fullmatch(line):
            step, steps, figures = match.groups()
            self.handle.update(
                self.html(
                    f'<progress value="{step}" max="{steps}" aria-label="steps of the training"></progress> '
                    f"{int(step):,} of {int(steps):,} steps, {html.escape(figures)}"
                )
            )

    def end(self) -> None:
        if self.handle is not None:
            self.handle.update(self.html(""))


def _table(rows: Iterable[tuple[str, Any]], caption: str) -> str:
    """Return a table in HTML."""
    lines = "".join(
        f'<tr><th scope="row" style="text-align: left">{html.escape(str(name))}</th>'
        f"<td>{html.escape(f'{value:.4g}' if isinstance(value, float) else str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption>{lines}</table>"
