"""Run the code of docs/own_loop.md, block by block: in this process, or in several processes."""

import os
import re
from pathlib import Path

import pytest
import torch

from tests.workers import rank_and_world

PAGE = (Path(__file__).parents[1] / "docs" / "own_loop.md").read_text().replace("headcount.heads", "heads")
BLOCKS = re.findall(r"(?:<!-- processes: (\d) -->\n)?```python\n(.*?)```", PAGE, flags=re.DOTALL)
IN_TURN = [code for processes, code in BLOCKS if not processes]
SPREAD = [(int(processes), code) for processes, code in BLOCKS if processes]


def test_blocks_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict = {}
    steps = []
    for code in IN_TURN:
        exec(compile(code, "own_loop.md", "exec"), space)
        steps.append(space["head"].step)
        assert torch.isfinite(space["loss"])
    assert steps == [20, 20, 21, 22, 25, 25, 3, 3, 1, 1]  # the last four blocks have heads of their own
    assert space["state"]["head"]["centers.rows"].shape == (2000, 64)


def run(code: str, folder: str) -> int:
    """Run the code of a block in a worker, in this folder; return the last step."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        space: dict = {}
        exec(compile(code, "own_loop.md", "exec"), space)
        assert space["head"].centers.shard.world_size == rank_and_world()[1]
        return space["head"].step
    finally:
        os.chdir(before)


@pytest.mark.parametrize(("processes", "code"), SPREAD, ids=["ddp", "saving"])
def test_blocks_of_several_processes(processes, code, workers, tmp_path):
    steps = workers(processes).run(run, code, str(tmp_path))
    assert len(set(steps)) == 1 and steps[0] > 0
