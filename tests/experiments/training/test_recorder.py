"""Memory that a run measures, with pauses of the training."""

import mmap

from experiments.training.recorder import Recorder, peak_bytes, reset_peak_bytes

LARGE = 2**28


def allocate() -> None:
    """Use memory that is returned to the system at once, independent of an allocator."""
    with mmap.mmap(-1, LARGE) as room:
        for page in range(0, LARGE, mmap.PAGESIZE):
            room[page] = 1


def test_memory_in_a_pause_does_not_count():
    recorder = Recorder(log_interval=1, images_per_step=1)
    reset_peak_bytes()
    before = peak_bytes()
    with recorder.paused():
        allocate()
        assert peak_bytes() > before + 0.9 * LARGE
    assert recorder.peak_bytes() < before + 0.5 * LARGE


def test_memory_before_a_pause_counts_after_it():
    recorder = Recorder(log_interval=1, images_per_step=1)
    reset_peak_bytes()
    before = peak_bytes()
    allocate()
    with recorder.paused():
        pass
    assert recorder.peak_bytes() > before + 0.9 * LARGE
