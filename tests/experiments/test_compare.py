"""The table of finished runs: grouping, means, marks, and what is left out."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments import compare


def a_run(folder: Path, rate: float, seed: int, rank1: float, status: str = "finished") -> None:
    folder.mkdir(parents=True)
    options = (
        f"seed: {seed}\nsample_rate: {rate}\nhead:\n  _target_: x\n  sample_rate: {rate}\nlogger:\n  name: {seed}\n"
    )
    (folder / "config.yaml").write_text(options)
    found = {"status": status, "head": "PartialFC", "seed": seed, "steps": 7, "val/rank1": rank1, "train/loss": 1.0}
    (folder / "summary.json").write_text(json.dumps(found))


def printed(capsys, *paths: Path) -> str:
    compare.show(list(paths))
    return capsys.readouterr().out


def test_means_over_seeds_and_the_best_marked(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    for job, (rate, seed, rank1) in enumerate([(0.1, 0, 0.8), (0.1, 1, 0.9), (0.5, 0, 0.9), (0.5, 1, 0.92)]):
        a_run(tmp_path / str(job), rate, seed, rank1)
    out = printed(capsys, tmp_path)
    lines = [line for line in out.splitlines() if "PartialFC" in line]
    assert len(lines) == 2
    assert "0.8500 ± 0.0707" in lines[0] and "*" not in lines[0]
    assert "0.9100 ± 0.0141 *" in lines[1]
    assert out.count("sample_rate") == 1 and "seed " not in out


def test_runs_that_did_not_finish_are_told_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    a_run(tmp_path / "9", 0.1, 0, 0.8)
    a_run(tmp_path / "10", 0.1, 0, 0.1, status="interrupted")
    a_run(tmp_path / "11", 0.1, 0, 0.1)
    (tmp_path / "11" / "summary.json").unlink()
    a_run(tmp_path / "12", 0.1, 0, 0.1)
    (tmp_path / "12" / "summary.json").write_text('{"status": "fini')
    out = printed(capsys, tmp_path)
    assert "1 runs" in out and "0.8000" in out and "0.1000" not in out
    reasons = [line.split("(")[1] for line in out.splitlines() if line.startswith("Left out")]
    assert reasons == [
        "interrupted at step 7)",
        "no summary.json: still running, or killed)",
        "summary.json is damaged)",
    ]


def test_paths_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no run under"):
        compare.show([tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        compare.show([tmp_path / "nothing"])


def test_one_run_has_no_best(tmp_path):
    a_run(tmp_path / "0", 0.1, 0, 0.8)
    console = Console(width=150, record=True)
    console.print(*compare.tables(compare.load([tmp_path])[0], 150))
    text = console.export_text()
    assert "0.8000" in text and "0.8000 *" not in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_terminal(width, tmp_path):
    for seed in (0, 1):
        a_run(tmp_path / str(seed), 0.1, seed, 0.8 + 0.01 * seed)
        a_run(tmp_path / f"{seed}b", 0.5, seed, 0.85)
    console = Console(width=width, record=True, force_terminal=True)
    for table in compare.tables(compare.load([tmp_path])[0], width):
        console.print(table)
    text = console.export_text()
    assert "0.8050 ± 0.0071" in text and "0.8500 ± 0.0000 *" in text and "1 ± 0" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_an_option_of_one_head_makes_no_column(tmp_path):
    a_run(tmp_path / "0", 0.1, 0, 0.8)
    a_run(tmp_path / "1", 0.1, 0, 0.9)
    (tmp_path / "1" / "config.yaml").write_text("seed: 0\nhead:\n  _target_: y\n")
    assert compare.differing(compare.load([tmp_path])[0]) == []
