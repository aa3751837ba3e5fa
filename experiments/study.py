"""`python -m experiments.study tuned=NAME`: tune every arm of a study alike, and train the best of each on new seeds.

The results are written to CSV files after each run. Runs whose results are there are not made again, so that an
interrupted study continues. `python -m experiments.results` draws tables and plots from these files.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.study")
    from .command_line.arguments import check_or_exit

    check_or_exit("study")


import sys
import time
from datetime import timedelta
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from .imports import end_imports
from .launching.launch_config import let_output_fail
from .studies.results import Job, Result, Results
from .studies.runner import Runner
from .studies.study import Study, study_of
from .tables import console


@hydra.main(config_path="../conf", config_name="study", version_base="1.3")
def job(config: DictConfig) -> None:
    try:
        study = study_of(config.tuned, str(HydraConfig.get().runtime.choices["tuned"]))
        if unknown := sorted(set(config.arms or ()) - study.arms.keys()):
            raise ValueError(f"arms={unknown} must be among {', '.join(study.arms)}")
        results = Results(Path(config.results) / f"{study.name}.csv")
        runner = Runner(config.workers, Path(config.folder))
        try:
            work(study, results, runner, config.arms or list(study.arms), config.stages)
        finally:
            runner.end()
    except ValueError as error:
        sys.exit(f"error: {error}")


def work(study: Study, results: Results, runner: Runner, arms: list[str], stages: list[str] | None) -> None:
    """Do the jobs of these arms that have no result."""

    def open_jobs() -> list[Job]:
        known = study.jobs(results)
        return [
            job for job in known if job.arm in arms and (not stages or job.stage in stages) and not results.has(job)
        ]

    begin, steps = time.monotonic(), 0

    def report(result: Result, seconds: float) -> None:
        nonlocal steps
        results.add(result)
        steps += result.steps
        value = result.value(study.metric)
        shown = "failed" if value is None else f"{value:.4f}"
        left = (time.monotonic() - begin) / steps * study.steps_left(arms, results)
        print(
            f"{study.name} {result.arm} {result.stage} {result.number}: {result.status}, {study.metric} {shown}, "
            f"{seconds:.0f} s; about {timedelta(seconds=round(left))} left",
            flush=True,
        )

    runner.run(open_jobs, report)
    console().print(f"In {results.path}: {len(results.all)} runs")


def main() -> None:
    end_imports()
    let_output_fail()
    job()


if __name__ == "__main__":
    main()
