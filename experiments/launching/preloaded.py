"""A process that imports a training before its config is known.

    python -m experiments.launching.preloaded PARENT PIPE MODULE,MODULE WORDS...

Importing torch and Lightning takes longer than composing and checking a config. `experiments.run` therefore starts this
process first, and sends it a `Request` later. The runs of a sweep are forks of one such process, so that the modules
are imported once. At the fork there must be no thread and no initialized GPU; imports create neither.

The words are those of `experiments.run`, for those who list processes.
"""

import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType

from ..imports import import_all
from .launch_config import end_with_parent
from .start import Request

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run the program of a request in this process or in forks of it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback
    end_with_parent(int(sys.argv[1]))
    pipe = Connection(int(sys.argv[2]))
    import_all(sys.argv[3].split(","))
    request = received(pipe)
    os.chdir(request.folder)
    os.environ.update(request.variables)
    sys.argv[:] = request.words
    import_all(request.words[:1])
    sys.modules[request.words[0]].main()


def received(pipe: Connection) -> Request:
    """Return the request of this process. For requests that fork, only the forks return.

    The process sends the exit status of each fork, negative for a signal, and passes signals on to it. It ends when
    the other end of the pipe is closed.
    """
    child = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not child:
            os._exit(128 + number)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    while True:
        try:
            request: Request = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        import_all(request.modules)
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until `child` is known
        if not request.forks or (child := os.fork()) == 0:
            pipe.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if request.forks:
                end_with_parent(parent)
            return request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
        pipe.send(status)


if __name__ == "__main__":
    main()
