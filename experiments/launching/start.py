"""Start of programs in processes of their own, and their exit statuses. Imports the standard library only.

`experiments.run` uses this module before its other imports.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import SWEEPS

MODULES = ("experiments.train",)  # what a training imports

_waiting: "Preloaded | None" = None


@dataclass(frozen=True)
class Request:
    """A program to run in a process of `experiments.launching.preloaded`.

    Args:
        words: the module of the program, and its arguments.
        folder: its working folder.
        variables: environment variables to set.
        modules: modules that the program will import.
        forks: run the program in a fork of the process, which then waits for another request.
    """

    words: tuple[str, ...]
    folder: str
    variables: dict[str, str]
    modules: tuple[str, ...]
    forks: bool


def start(command: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit status, negative if a signal ended it. Pass Ctrl-C and SIGTERM on to it.

    The command gets its own process group. Ctrl-C at a terminal therefore reaches it once, through this process.
    """
    process = subprocess.Popen(command, env=environment, process_group=0)
    with signals_passed_on(process):
        return process.wait()


@contextmanager
def signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to a process."""
    previous = {
        number: signal.signal(number, lambda number, frame: process.send_signal(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Preloaded:
    """A process of `experiments.launching.preloaded`, in its own process group.

    Args:
        modules: the modules that it imports first.
        options: options of `subprocess.Popen`.
    """

    def __init__(self, modules: Sequence[str] | None = None, **options: Any) -> None:
        self.environment = dict(os.environ)
        self.pipe, theirs = multiprocessing.Pipe()
        words = [str(os.getpid()), str(theirs.fileno()), ",".join(modules or MODULES), *sys.argv[1:]]
        command = [sys.executable, "-m", "experiments.launching.preloaded", *words]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], process_group=0, **options)

    def run(self, request: Request) -> int:
        """Return the exit status of the program, negative if a signal ended it."""
        with signals_passed_on(self.process):
            try:
                self.pipe.send(request)
                return int(self.pipe.recv())
            except (EOFError, OSError):  # the process runs the program itself, or was ended
                return self.process.wait()

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()  # it waits for a request, or imports
        self.process.wait()


def preload(arguments: Sequence[str]) -> None:
    """Start to import the modules of a training, unless these arguments of `experiments.run` train nothing here."""
    global _waiting
    if all(word in SWEEPS or not word.startswith(("-", "hydra/launcher=")) for word in arguments):
        _waiting = _waiting or Preloaded()


def run_preloaded(
    words: Sequence[str], variables: Mapping[str, str], modules: Sequence[str] = (), *, others_follow: bool
) -> int:
    """Run a module of this package with arguments, and return its exit status, negative if a signal ended it.

    Args:
        words: the module and its arguments.
        variables: environment variables of the program, in addition to those of this process.
        modules: modules that it will import.
        others_follow: keep the process with the modules for other programs; on Linux only, because forks of a process
            that uses Apple's frameworks may abort.
    """
    global _waiting
    # Libraries read variables when they are imported.
    if _waiting is not None and (_waiting.process.poll() is not None or _waiting.environment != dict(os.environ)):
        end_preloaded()
    process, forks = _waiting or Preloaded(), others_follow and sys.platform == "linux"
    _waiting = process if forks else None
    return process.run(Request(tuple(words), str(Path.cwd()), dict(variables), tuple(modules), forks))


def end_preloaded() -> None:
    """End the process of `preload`, if it still waits."""
    global _waiting
    if _waiting is not None:
        _waiting.end()
        _waiting = None
