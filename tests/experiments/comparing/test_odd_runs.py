"""One odd run folder among good ones: it is left out and reported, and the others are compared."""

import json
import os
from pathlib import Path

import pytest
import yaml

from experiments import compare
from tests.experiments.made_runs import made_run

DIGITS = "9" * 401
BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TRAINER, STEPS = {"accumulate_grad_batches": None}, {"max_steps": "many"}
NO_TEXT = b"\xff\xfe\x00"
ODD = {
    # The file, its content (text, bytes, changed values, or a function that creates it), and the reported reason.
    "401 digits in the summary": (
        "summary.json",
        {"val/rank1": int(DIGITS)},
        "val/rank1 is not a number, or too large",
    ),
    "401 digits of a step": ("summary.json", {"steps": int(DIGITS)}, "steps must be a whole number"),
    "401 digits of a seed": ("summary.json", {"seed": int(DIGITS)}, "seed must be a whole number"),
    "more digits than Python reads": ("summary.json", '{"steps": ' + "9" * 5000 + "}", "summary.json is damaged: "),
    "401 digits in the metrics": ("metrics.csv", f"step,time,name,value\n{DIGITS},0,val/rank1,1\n", "is damaged"),
    "401 digits of an option": ("config.yaml", {"optimizer": {"lr": int(DIGITS)}}, "optimizer.lr is not a number"),
    "9000 hexadecimal digits": ("config.yaml", "head: {_target_: x}\nbatch_size: 0x" + "f" * 9000, "batch_size must"),
    "deep JSON": ("summary.json", '{"a":' * 100_000, "summary.json is damaged: "),
    "deep YAML": ("config.yaml", "a: " + "[" * 100_000, "it is nested over 50 levels"),
    "an alias bomb": ("config.yaml", BOMB, "it has aliases (*a)"),
    "a null metric": ("summary.json", {"val/rank1": None}, "val/rank1 is not a number"),
    "null steps": ("summary.json", {"steps": None}, "steps must be a whole number"),
    "null classes": ("summary.json", {"num_classes": None}, "num_classes must be a whole number"),
    "null head": ("summary.json", {"head": None}, "it has no status or no head"),
    "null status": ("summary.json", {"status": None}, "it has no status or no head"),
    "infinite steps": ("summary.json", {"steps": float("inf")}, "steps must be a whole number"),
    "a list": ("summary.json", "[1, 2]", "it holds no object"),
    "null batch": ("config.yaml", {"batch_size": None}, "batch_size must be a whole number"),
    "no batch": ("config.yaml", {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    "a batch beyond all numbers": ("config.yaml", {"batch_size": 1e308}, "batch_size must be a whole number"),
    "null accumulation": ("config.yaml", {"trainer": TRAINER}, "trainer.accumulate_grad_batches must be"),
    "steps in words": ("config.yaml", {"trainer": STEPS}, "trainer.max_steps must be a whole number"),
    "a tag that runs": (
        "config.yaml",
        "a: !!python/object/apply:os.system [ls]\n",
        "could not determine a constructor",
    ),
    "an odd tag": ("config.yaml", "head: !odd x\n", "could not determine a constructor"),
    "a pipe for a config": ("config.yaml", os.mkfifo, "config.yaml is not a regular file"),
    "a pipe for a summary": ("summary.json", os.mkfifo, "summary.json is not a regular file"),
    "a pipe for metrics": ("metrics.csv", os.mkfifo, "metrics.csv is not a regular file"),
    "a device": ("summary.json", lambda path: path.symlink_to("/dev/zero"), "summary.json is not a regular file"),
    "a link to itself": ("summary.json", lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "no text": ("config.yaml", NO_TEXT, "config.yaml is damaged: it is not text"),
    "metrics that are no text": ("metrics.csv", NO_TEXT, "metrics.csv is damaged"),
    "too large": ("config.yaml", "a: 1\n" * 4_000_000, "it has 20,000,000 bytes"),
    "a folder": ("summary.json", Path.mkdir, "summary.json is not a regular file"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_run_is_left_out_and_reported(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    file, held, reason = ODD[name]
    for seed in range(2):
        made_run(tmp_path / "good" / str(seed), seed=seed)
    path = made_run(tmp_path / "odd", seed=9, rank1=0.1) / file
    if isinstance(held, dict):
        content = yaml.safe_load(path.read_text())
        for key, value in held.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        held = json.dumps(content)  # which is YAML too
    path.unlink()
    if callable(held):
        held(path)
    else:
        path.write_bytes(held if isinstance(held, bytes) else held.encode())
    compare.write_files(*compare.show([tmp_path]), tmp_path / "page")
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("Left out"))
    assert line.startswith(f"Left out: {tmp_path / 'odd'} (") and file in line and reason in line and len(line) < 400
    assert "2 runs" in out and "0.8000" in out
