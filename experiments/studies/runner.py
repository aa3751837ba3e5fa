"""Runs of a study, several at once, each in a fork of a process that has imported the modules of a training."""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from data.files import write_whole

from .. import run, run_files
from ..command_line.config_files import CONF
from ..launching.launch_config import pending_config
from ..launching.start import Preloaded, Request
from .results import Job, Result
from .study import COST

Report = Callable[[Result, float], None]


class Runner:
    """Processes that train the jobs of a study.

    Args:
        workers: number of processes; the machine's cores are divided among them.
        folder: folder of the runs, STUDY/ARM/STAGE-NUMBER. Checkpoints are removed after each run.
    """

    def __init__(self, workers: int, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // workers)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.logs = [(folder / f"worker-{number}.log").open("ab") for number in range(workers)]
        self.servers = [Preloaded(env=environment, stdout=log, stderr=log) for log in self.logs]
        self.busy: dict[Connection[Any, Any], tuple[Job, float]] = {}

    def run(self, jobs: Callable[[], Iterable[Job]], report: Report) -> None:
        """Train jobs until there are none. A job of the stage `cost` waits until it is alone, and runs alone.

        Args:
            jobs: returns the jobs that are to be done now, the next ones first.
            report: called with each result and its seconds.
        """
        while True:
            taken = {job for job, _ in self.busy.values()}
            is_alone = any(job.stage == COST for job in taken)
            waiting = [job for job in jobs() if job not in taken]
            shared = [job for job in waiting if job.stage != COST] or waiting
            for server in self.servers:
                if server.pipe in self.busy or not shared or is_alone:
                    continue
                if shared[0].stage == COST:
                    if self.busy:
                        break
                    is_alone = True
                job = shared.pop(0)
                self.busy[server.pipe] = (job, time.monotonic())
                server.pipe.send(self.request(job))
            if not self.busy:
                return
            ready = wait(list(self.busy))
            for pipe in [pipe for pipe in self.busy if pipe in ready]:
                job, begin = self.busy.pop(pipe)
                try:
                    pipe.recv()  # the exit status; the summary says more
                except (EOFError, OSError):
                    raise ValueError(
                        f"folder={self.folder}: the process of {job.arm} {job.stage} {job.number} was ended, perhaps "
                        "for lack of memory; run the same command again to continue, or with fewer workers"
                    ) from None
                report(self.result(job), time.monotonic() - begin)

    def folder_of(self, job: Job) -> Path:
        """Return the folder of a run."""
        return self.folder / job.study / job.arm / f"{job.stage}-{job.number}"

    def request(self, job: Job) -> Request:
        """Compose and check the config of a job, and return the request to train it.

        Raises:
            ValueError: an option is wrong.
        """
        folder = self.folder_of(job)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that did not end
        folder.mkdir(parents=True)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", job.words.split(), return_hydra_config=True)
        settings = config.hydra
        with open_dict(config):
            del config["hydra"]
        run.complete(config, settings)
        run.check(config, folder)
        pending = folder / pending_config()
        write_whole(pending, OmegaConf.to_yaml(config))
        words = ("experiments.train", str(folder), pending.name)
        return Request(words, str(Path.cwd()), {}, (), True)

    def result(self, job: Job) -> Result:
        """Return the result of a run that has ended, and remove its checkpoints."""
        folder = self.folder_of(job)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        try:
            summary = run_files.summary(folder / "summary.json")
        except (OSError, run_files.DamagedError):
            summary = {}
        return Result.of(job, summary)

    def end(self) -> None:
        """End all processes."""
        for server in self.servers:
            server.end()
        for log in self.logs:
            log.close()
