"""Modules of the worker processes of tests, imported once in the process that they are forks of.

Nothing here starts a thread or an operation of torch before the fork.
"""

import gc

gc.disable()

import experiments.train  # noqa: E402, F401
import tests.conformance  # noqa: E402, F401

gc.freeze()
