"""A study as conf/tuned describes it: its arms, the trials that tune each arm, and the final runs.

Every arm gets the same trials: the same quasi-random points of learning rate and row ratio, and of an option of its
own. The best trial sets the values of the arm's final runs, on seeds that no trial uses.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .results import Job, Results

TRIAL, COST, IMAGES, SECONDS = "trial", "cost", "images", "seconds"  # stages, in their order
LR, ROWS_LR = "optimizer.lr", "optimizer.rows.lr"
SHARE = re.compile(r"(\d+)%")  # a share of the steps in the value of an option
# Options of all runs of a study: nothing is saved, and nothing is evaluated before the end.
ALWAYS = ("evaluate.interval=null", "checkpoint.interval=null", "logger.wandb.mode=disabled")


@dataclass(frozen=True)
class Arm:
    """One line of a study: words of `experiments.run` that choose a head or a margin.

    Attributes:
        words: overrides.
        option: name -> values of the arm's own main option, which the trials tune.
        has_rows: whether the learning rate of class rows is tuned.
        fidelity: whether final runs measure fidelity at their end.
        like: arm whose best trial sets the values of this one, which is not tuned itself.
        row_factor: factor on the tuned learning rate of the rows.
        step_factor: factor on the steps of the study.
    """

    name: str
    words: tuple[str, ...]
    option: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    has_rows: bool = True
    fidelity: bool = False
    like: str | None = None
    row_factor: float = 1.0
    step_factor: float = 1.0


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: its name, that of the file in conf/tuned.
        base: overrides of all runs.
        steps: steps of a final run.
        seeds: seeds of the final runs.
        arms: the arms by name.
        trials: number of trials of each arm; 0: the arms are not tuned.
        share: share of the steps in a trial.
        trial_seed: seed of the trials.
        metric: figure of a run's summary; the trial with the highest one is the best.
        lr: lowest and highest learning rate of the trials.
        row_ratio: lowest and highest learning rate of the rows, divided by that of the backbone.
        cost: share of the steps in the run that measures time, alone on the machine; 0: none.
        reference: arm whose time all arms get for the final runs at equal seconds; None: there are none.
        prediction: what was expected, stated before the runs.
    """

    name: str
    base: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    trials: int
    share: float
    trial_seed: int
    metric: str
    lr: tuple[float, float]
    row_ratio: tuple[float, float]
    cost: float
    reference: str | None
    prediction: str

    def jobs(self, results: Results) -> list[Job]:
        """Return the jobs that are known now. Final runs follow when the trials of their arm have results."""
        return list(self._jobs(results))

    def _jobs(self, results: Results) -> Iterator[Job]:
        for arm in self.arms.values():
            points, all_steps = self.points(arm), self.steps_of(arm)
            for number, words in enumerate(points):
                steps = round(self.share * all_steps)
                yield self.job(arm, TRIAL, number, steps, words, self.trial_seed)
            best = self.best(arm, results)
            if best is None:
                continue
            if self.cost:
                yield self.job(arm, COST, 0, round(self.cost * all_steps), best, self.trial_seed)
            for seed in self.seeds:
                yield self.job(arm, IMAGES, seed, all_steps, best, seed)
            if (in_time := self.steps_in_time(arm, results)) is not None:
                for seed in self.seeds:
                    yield self.job(arm, SECONDS, seed, in_time, best, seed)

    def steps_left(self, arms: Sequence[str], results: Results) -> int:
        """Return the steps of all runs at equal images that are to be made, also of those that are not known yet."""
        left = 0
        for arm in (self.arms[name] for name in arms):
            tried, trained = (len(results.of(arm.name, stage)) for stage in (TRIAL, IMAGES))
            left += max(0, len(self.points(arm)) - tried) * round(self.share * self.steps_of(arm))
            left += max(0, len(self.seeds) - trained) * self.steps_of(arm)
        return left

    def steps_of(self, arm: Arm) -> int:
        """Return the steps of an arm's final runs at equal images."""
        return round(self.steps * arm.step_factor)

    def job(self, arm: Arm, stage: str, number: int, steps: int, words: Sequence[str], seed: int) -> Job:
        """Return a job: the number is that of the trial, or the seed."""
        fidelity = (f"fidelity.interval={steps}",) if arm.fidelity and stage == IMAGES else ()
        every = (*self.base, *arm.words, *words, f"trainer.max_steps={steps}", f"seed={seed}", *fidelity)
        replaced = tuple(SHARE.sub(lambda match: str(round(int(match[1]) / 100 * steps)), word) for word in every)
        return Job(self.name, arm.name, stage, number, steps, " ".join((*replaced, *ALWAYS)))

    def points(self, arm: Arm) -> list[list[str]]:
        """Return the words of each trial: a scrambled Sobol sequence, whose columns are equal for all arms."""
        from scipy.stats import qmc

        if not self.trials or arm.like is not None:
            return []
        lines = []
        for rate, ratio, option in qmc.Sobol(3, rng=self.trial_seed).random(self.trials):
            lr = between(*self.lr, rate)
            words = [f"{LR}={lr:.3g}"]
            if arm.has_rows:
                words.append(f"{ROWS_LR}={lr * between(*self.row_ratio, ratio):.3g}")
            words += [f"{name}={values[int(option * len(values))]}" for name, values in arm.option.items()]
            lines.append(words)
        return lines

    def best(self, arm: Arm, results: Results) -> list[str] | None:
        """Return the tuned words of an arm; None if trials are missing, an empty list if there are none."""
        found = self._best_trial(self.arms[arm.like] if arm.like else arm, results)
        if found is None or arm.row_factor == 1:
            return found
        values = dict(word.split("=") for word in found)
        values[ROWS_LR] = f"{float(values[ROWS_LR]) * arm.row_factor:.3g}"
        return [f"{name}={value}" for name, value in values.items()]

    def _best_trial(self, arm: Arm, results: Results) -> list[str] | None:
        points = self.points(arm)
        found = [result for result in results.of(arm.name, TRIAL) if result.value(self.metric) is not None]
        if len(results.of(arm.name, TRIAL)) < len(points):
            return None
        if points and not found:
            raise ValueError(f"arms.{arm.name}: no trial has {self.metric}; lower lr in conf/tuned/{self.name}.yaml")
        best = max(found, key=lambda result: result.value(self.metric) or 0, default=None)
        return points[best.number] if best else []

    def steps_in_time(self, arm: Arm, results: Results) -> int | None:
        """Return the steps of an arm in the reference's time; None if they are not asked for, or not known yet.

        Also None if they are the steps of the final runs, up to a twentieth.
        """
        if self.reference is None:
            return None
        given, own = (milliseconds(results, name) for name in (self.reference, arm.name))
        if given is None or own is None:
            return None
        steps = round(self.steps_of(self.arms[self.reference]) * given / own)
        return None if abs(steps / self.steps_of(arm) - 1) < 0.05 else steps


def milliseconds(results: Results, arm: str) -> float | None:
    """Return the time of a training step, measured alone on the machine; None if it is not known yet."""
    for result in results.of(arm, COST):
        seconds = result.value("train/seconds")
        return None if seconds is None else 1000 * seconds / result.steps
    return None


def between(low: float, high: float, share: float) -> float:
    """Return the number at a share of the way from low to high, on a logarithmic scale."""
    return low * float(high / low) ** share


def study_of(config: DictConfig, name: str) -> Study:
    """Return the study in a config."""
    node: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    tuples: dict[str, Any] = {key: tuple(node.pop(key)) for key in ("seeds", "lr", "row_ratio")}
    base = tuple(word for line in node.pop("base") for word in line.split())
    arms = {arm: Arm(arm, tuple(words.pop("words").split()), **words) for arm, words in node.pop("arms").items()}
    return Study(name=name, base=base, arms=arms, **tuples, **node)
