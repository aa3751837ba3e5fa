"""Run a program that ends with its parent process: `python -m experiments.launching.child PARENT MODULE WORDS...`.

The process asks the kernel to end it with its parent before it imports the program. Importing torch takes seconds,
and the parent may die in that time.
"""

import sys

from ..imports import import_all
from .launch_config import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    import_all(sys.argv[:1])
    sys.modules[sys.argv[0]].main()
