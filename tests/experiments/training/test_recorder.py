"""What a run measures of itself: memory, where training pauses."""

import numpy as np
import torch

from experiments.processes import Processes
from experiments.training.recorder import Recorder, forget_peak, peak_bytes

LARGE = 2**28


def held() -> None:
    np.ones(LARGE, np.uint8)


def test_a_pause_does_not_count_as_memory_of_the_training(tmp_path):
    recorder = Recorder(tmp_path, log_interval=1, processes=Processes(0, 1, torch.device("cpu")))
    forget_peak()
    before = peak_bytes()
    with recorder.paused():
        held()
        assert peak_bytes() > before + 0.9 * LARGE
    assert recorder.peak_bytes() < before + 0.5 * LARGE


def test_what_was_held_before_a_pause_counts_after_it(tmp_path):
    recorder = Recorder(tmp_path, log_interval=1, processes=Processes(0, 1, torch.device("cpu")))
    forget_peak()
    before = peak_bytes()
    held()
    with recorder.paused():
        pass
    assert recorder.peak_bytes() > before + 0.9 * LARGE
