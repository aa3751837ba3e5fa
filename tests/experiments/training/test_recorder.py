"""What a run measures of itself: memory, where training pauses."""

import mmap

from experiments.training.recorder import Recorder, peak_bytes, reset_peak_bytes

LARGE = 2**28


def held() -> None:
    """Memory that goes back to the system at once, whatever an allocator keeps."""
    with mmap.mmap(-1, LARGE) as room:
        for page in range(0, LARGE, mmap.PAGESIZE):
            room[page] = 1


def test_a_pause_does_not_count_as_memory_of_the_training():
    recorder = Recorder(log_interval=1)
    reset_peak_bytes()
    before = peak_bytes()
    with recorder.paused():
        held()
        assert peak_bytes() > before + 0.9 * LARGE
    assert recorder.peak_bytes() < before + 0.5 * LARGE


def test_what_was_held_before_a_pause_counts_after_it():
    recorder = Recorder(log_interval=1)
    reset_peak_bytes()
    before = peak_bytes()
    held()
    with recorder.paused():
        pass
    assert recorder.peak_bytes() > before + 0.9 * LARGE
