"""Run a program that ends with its parent process: `python -m experiments.launching.child PARENT MODULE WORDS...`.

The process asks the kernel to end it with its parent before it imports the program. Importing torch takes seconds,
and the parent may die in that time.
"""

import runpy
import sys

from ..imports import begin_imports
from .launch_config import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    begin_imports()  # the program ends it
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
