"""Lines of progress without a terminal."""

import re

from experiments.train import train
from tests.experiments.commands import SMOKE, config


def test_a_speed_is_printed_once_it_is_known(tmp_path, capsys):
    """An unknown speed is not printed as 0 images a second or 0 seconds left."""
    assert train(config(*SMOKE, "evaluate.interval=null", "logger.wandb.mode=disabled"), tmp_path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 20 and re.fullmatch(r"step 1/20  loss \d+\.\d+", lines[0])
    for line in lines[6:]:
        assert re.fullmatch(r"step \d+/20  loss \d+\.\d+  [\d,]+ images/s(  rank-1 [\d.]+)?  \d+ s left", line)
    assert not any(" 0 images/s" in line for line in lines)
