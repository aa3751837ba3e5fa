"""Build an Annoy forest, in this process or as a program in its own process.

The program is `python annoy_build.py ROWS.npy FOREST NUM_TREES SEED THREADS PARENT`. It ends with the process PARENT.
Adding rows holds the interpreter's lock for microseconds per row and minutes in total, which would stop a training in
the same process. This file imports neither torch nor the rest of the package, so that the program starts fast.
"""

import ctypes
import os
import signal
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def built(rows: NDArray[np.float32], num_trees: int, seed: int, threads: int) -> Any:
    """Return an `AnnoyIndex` of rows (n, D) for angular distance."""
    from annoy import AnnoyIndex

    forest = AnnoyIndex(rows.shape[1], "angular")
    forest.set_seed(seed)
    for number, row in enumerate(rows):
        forest.add_item(number, row)
    forest.build(num_trees, n_jobs=threads)
    return forest


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(sys.argv[6]):
            sys.exit("the training has ended already")
    rows, forest = sys.argv[1:3]
    built(np.load(rows, mmap_mode="r"), *map(int, sys.argv[3:6])).save(forest)
