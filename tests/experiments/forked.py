"""Commands without their imports: each is a fork of a process that has imported what commands import.

The fork runs `python -m MODULE WORDS` as a new process does, with `__name__ == "__main__"`. `experiments.run` gets its
training from another fork.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from experiments.launching import preloaded, start
from experiments.launching.start import Preloaded, Request

COMMANDS = ("compare", "embed", "evaluate", "export", "launch", "plan", "train")
MODULES = (*(f"experiments.{name}" for name in COMMANDS), "matplotlib.pyplot", "wandb", "tests.experiments.forked")
# Variables that the interpreter or a library reads when it starts.
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "TORCH", "LD_", "MPL", "CUDA")
SECONDS = 300


class Commands:
    """Runs commands in a folder, with the environment of its construction and later changes."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.folder, self.environment = folder, environment
        out, err = self.outputs
        self.server = Preloaded(MODULES, cwd=folder, env=environment, stdout=out, stderr=err)

    def fits(self, environment: dict[str, str]) -> bool:
        """Return whether a command with this environment can be a fork."""
        names = {name for name, value in self.environment.items() ^ environment.items()}
        is_running = self.server.process.poll() is None
        return is_running and names <= environment.keys() and not any(name.startswith(READ_AT_START) for name in names)

    def run(self, words: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
        """Return the exit status of a command and its output on both channels."""
        before = [os.fstat(output.fileno()).st_size for output in self.outputs]
        self.server.pipe.send(Request((__name__, *words), str(self.folder), environment, (), True))
        if not self.server.pipe.poll(SECONDS):
            self.close()
            raise subprocess.TimeoutExpired(words, SECONDS)
        status = self.server.pipe.recv()
        out, err = (since(output, size) for output, size in zip(self.outputs, before, strict=True))
        return status, out, err

    def close(self) -> None:
        self.server.end()
        for output in self.outputs:
            output.close()


def since(output: IO[bytes], size: int) -> str:
    """Return what a file has after its first bytes. Its position, which the commands share, stays."""
    return os.pread(output.fileno(), os.fstat(output.fileno()).st_size - size, size).decode()


class Fork:
    """A fork of this process that waits for the request of a training, in place of a new process."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.pipe, theirs = start.multiprocessing.Pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            self.pipe.close()
            sys.argv[:] = ["preloaded", str(parent), str(os.dup(theirs.fileno())), "experiments.train"]
            preloaded.main()
            sys.exit()
        theirs.close()
        self.process, self.status = self, None

    run, end = Preloaded.run, Preloaded.end

    def poll(self) -> int | None:
        if self.status is None and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.status = 0
        return self.status

    def wait(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def send_signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def main() -> None:
    """Run the command of `sys.argv` in this fork."""
    del sys.argv[0]
    if sys.argv[0] == "experiments.run":
        start._waiting = Fork()  # type: ignore[assignment]
    sys.modules.pop(sys.argv[0], None)  # runpy warns about a module that has been imported
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
