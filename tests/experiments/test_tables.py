"""Printed tables: paths and words of users appear unchanged, with any characters."""

import io
import threading

import numpy as np
import pytest
from rich.console import Console

from data.conversion.options import parse
from data.conversion.report import Report, print_report
from data.screen import bars
from experiments import compare, evaluate, tables
from experiments.protocols import Result
from experiments.training.summary import print_summary
from tests.experiments.made_runs import made_run

ODD = "m[/b]x [red]y[/] :dog: \\[z"  # as markup an error, a colour, an emoji and an escape


@pytest.fixture(autouse=True)
def wide(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def test_the_summary_of_a_run(tmp_path, capsys):
    print_summary({"status": "finished", "head": ODD, "val/rank1": 0.5}, tmp_path / ODD)
    printed = capsys.readouterr().out
    assert f"{ODD}: finished" in printed and f"In {tmp_path / ODD}: config.yaml" in printed


def test_a_comparison(tmp_path, capsys):
    for number, rate in enumerate((0.1, 0.2)):
        made_run(tmp_path / ODD / str(number), options={"backbone": f"{ODD} {rate}"}, rank1=rate)
    made_run(tmp_path / ODD / "left out", status=ODD)
    found = compare.show([tmp_path / ODD])
    compare.write_files(*found, tmp_path / "page" / ODD)
    printed = capsys.readouterr().out
    assert f"│ {ODD} 0.1 " in printed and f"Left out: {tmp_path / ODD / 'left out'} ({ODD} at step 100)" in printed
    assert f"In {tmp_path / 'page' / ODD}: comparison.html" in printed


def test_an_evaluation(tmp_path, capsys):
    (tmp_path / ODD).mkdir(parents=True)
    curves = {"cmc": (np.array([1, 2]), np.array([0.5, 1.0]))}
    result = Result("identification", {f"a{ODD}": 0.5}, {}, {ODD: 3}, [ODD], curves)
    evaluate.print_results([result])
    evaluate.write_results([result], None, tmp_path / ODD)
    printed = capsys.readouterr().out
    assert f"3 {ODD}" in printed and f"\n{ODD}\n" in printed and f"│ a{ODD} " in printed
    assert f"In {tmp_path / ODD}: evaluation.json" in printed


def test_a_conversion(capsys):
    print_report(Report(2, 3, 4, [], [ODD]), parse(["source=x", f"target={ODD}"]).target, tables.console())
    printed = capsys.readouterr().out
    assert printed.startswith(ODD) and printed.rstrip().endswith(ODD)


def test_bars():
    screen = Console(file=io.StringIO(), force_terminal=True, markup=False, emoji=False, width=200)
    with bars(screen) as progress:
        progress.add_task(f"Writing {ODD}", total=2)
    assert f"Writing {ODD}" in screen.file.getvalue()


def test_a_hidden_progress_bar_starts_no_thread():
    before = set(threading.enumerate())
    for _ in tables.shown(iter(range(3)), "Work", 3, on=False):
        assert set(threading.enumerate()) <= before
    with tables.bars_hidden():
        assert list(tables.shown(iter(range(3)), "Work", 3)) == [0, 1, 2]
