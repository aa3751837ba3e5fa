"""Run a program that ends with the process that started it: `python -m experiments.child PARENT MODULE WORDS...`.

It asks for that before the program is imported: importing torch takes seconds, in which the parent may die.
"""

import runpy
import sys

from .launch_config import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
