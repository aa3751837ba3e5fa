"""Tables of a study's final runs in Markdown: each arm beside the reference, with paired differences and verdicts."""

import re
import statistics
from collections.abc import Sequence

from ..comparing.comparison import POINT, WITHIN
from ..comparing.differences import Difference, Verdict, difference, verdicts
from .results import Result, Results
from .study import COST, IMAGES, SECONDS, TRIAL, milliseconds

RANK1, TAR = "val/rank1", "val/tar_at_far_1e-4"
MEMORY, NUMBER, CLASSES = "memory/head_bytes", "head/active_classes", "num_classes"
STEP = "head/step_ms"
TUNED = re.compile(r"^(optimizer\.lr|optimizer\.rows\.lr)=")
OWN_BATCHES = ("head=ffc", "head=virtual", "head=none")  # heads whose batches differ from those of the others


def in_points(verdict: Verdict) -> str:
    """Return a difference in points with its 95 % interval, and `=` if equivalent, `≈` if not beyond noise."""
    gap = verdict.difference
    low, high = gap.interval or (float("nan"),) * 2
    mark = " =" if verdict.equivalent else "" if verdict.beyond_noise else " ≈"
    return f"{gap.mean / POINT:+.1f} ({low / POINT:+.1f} to {high / POINT:+.1f}){mark}"


def arms_of(results: Results) -> list[str]:
    """Return the arms that have final runs, in their order."""
    return list(dict.fromkeys(result.arm for result in results.all if result.stage == IMAGES))


def values(results: Results, arm: str, figure: str, stage: str = IMAGES) -> dict[int, float]:
    """Return a figure of an arm's runs by seed, of the runs that have it."""
    found = {result.number: result.value(figure) for result in results.of(arm, stage)}
    return {seed: value for seed, value in found.items() if value is not None}


def judged(
    results: Results, figure: str, reference: str, arms: Sequence[str], stage: str = IMAGES
) -> dict[str, Verdict]:
    """Compare arms with the reference. Runs at equal seconds are compared with the reference's own final runs."""
    base = values(results, reference, figure)
    gaps: dict[str, Difference] = {}
    for arm in arms:
        own = values(results, arm, figure, stage)
        if arm == reference or len(own) < 2:
            continue
        shares = not any(word in result.words.split() for result in results.of(arm, stage) for word in OWN_BATCHES)
        if shares and own.keys() == base.keys():
            gaps[arm] = difference([own[seed] for seed in base], list(base.values()), paired=True)
        else:
            gaps[arm] = difference(list(own.values()), list(base.values()))
    return verdicts(gaps, WITHIN * POINT)


def main_table(results: Results, reference: str, plain: Sequence[str] = (), timed: str | None = None) -> str:
    """Return the table of a study: quality, cost and fidelity of each arm, best rank-1 first.

    Args:
        results: of the study.
        reference: arm from which differences are counted.
        plain: arms that others change in one factor, and from which these are counted as well: `pfc_rows` from `pfc`.
        timed: arm whose time all arms got at equal seconds, from which these runs are counted; the reference if None.
    """
    arms = sorted(arms_of(results), key=lambda arm: -mean(results, arm, RANK1))
    changed = {base: [arm for arm in arms if arm.startswith(f"{base}_")] for base in plain}
    factors = {arm: gap for base, group in changed.items() for arm, gap in judged(results, RANK1, base, group).items()}
    rank1, tar = (judged(results, figure, reference, arms) for figure in (RANK1, TAR))
    in_time = judged(results, RANK1, timed or reference, arms, SECONDS)
    columns = {
        "": [f"`{arm}`" for arm in arms],
        "rank-1": [spread(results, arm, RANK1) for arm in arms],
        f"points from `{reference}`": [in_points(rank1[arm]) if arm in rank1 else "" for arm in arms],
        f"points from {' or '.join(f'`{base}`' for base in plain)}": [
            in_points(factors[arm]) if arm in factors else "" for arm in arms
        ],
        "at equal seconds" + (f", from `{timed}`" if timed else ""): [
            in_points(in_time[arm]) if arm in in_time else "" for arm in arms
        ],
        "TAR at 1e-4": [spread(results, arm, TAR) for arm in arms],
        "TAR, points": [in_points(tar[arm]) if arm in tar else "" for arm in arms],
        "step": [times(milliseconds(results, arm), milliseconds(results, reference)) for arm in arms],
        "memory": [times(first(results, arm, MEMORY), first(results, reference, MEMORY)) for arm in arms],
        "mass": [spread(results, arm, "fidelity/mass", 2) for arm in arms],
        "gradient cosine": [spread(results, arm, "fidelity/gradient_cosine", 2) for arm in arms],
    }
    return markdown(columns)


def cost_table(results: Results, reference: str) -> str:
    """Return the table of a study that measures cost only, as multiples of the reference, cheapest head step first."""

    def cost(arm: str, figure: str) -> float | None:
        return next(iter(values(results, arm, figure, COST).values()), None)

    arms = list(dict.fromkeys(result.arm for result in results.all if result.stage == COST))
    arms.sort(key=lambda arm: cost(arm, STEP) or 0)
    return markdown(
        {
            "": [f"`{arm}`" for arm in arms],
            "active classes": [f"{cost(arm, NUMBER) or 0:,.0f}" for arm in arms],
            "step of the head": [times(cost(arm, STEP), cost(reference, STEP), 3) for arm in arms],
            "memory of the head": [times(cost(arm, MEMORY), cost(reference, MEMORY), 3) for arm in arms],
        }
    )


def by_classes(results: Results) -> dict[int, tuple[str, list[str]]]:
    """Return the arms of each number of classes: the one where all take part, and the others by their active ones."""
    arms: dict[int, list[str]] = {}
    for arm in arms_of(results):
        arms.setdefault(round(first(results, arm, CLASSES) or 0), []).append(arm)
    for group in arms.values():
        group.sort(key=lambda arm: first(results, arm, NUMBER) or 0)
    return {classes: (group[-1], group[:-1]) for classes, group in sorted(arms.items())}


def number_table(results: Results) -> str:
    """Return the table of active classes against classes: points from all classes."""
    columns: dict[str, list[str]] = {}
    for classes, (full, arms) in by_classes(results).items():
        rank1, tar = (judged(results, figure, full, arms) for figure in (RANK1, TAR))
        for arm in (*arms, full):
            number = first(results, arm, NUMBER) or 0
            line = {
                "classes": f"{classes:,}",
                "active": f"{number:,.0f}",
                "rate": f"{number / classes:.2g}",
                "rank-1": spread(results, arm, RANK1),
                "points from all": in_points(rank1[arm]) if arm in rank1 else "",
                "TAR at 1e-4": spread(results, arm, TAR),
                "TAR, points": in_points(tar[arm]) if arm in tar else "",
            }
            for title, cell in line.items():
                columns.setdefault(title, []).append(cell)
    return markdown(columns)


def tuned_table(results: Results, metric: str = RANK1) -> str:
    """Return the tuned values of each arm, and the best and the worst of its trials."""
    arms = arms_of(results)
    found = {arm: [value for _, value in sorted(values(results, arm, metric, TRIAL).items())] for arm in arms}
    words = {arm: own_words(results, arm) for arm in arms}
    return markdown(
        {
            "": [f"`{arm}`" for arm in arms],
            "best trial": [" ".join(f"`{word}`" for word in words[arm]) for arm in arms],
            "its rank-1": [f"{max(found[arm]):.3f}" if found[arm] else "" for arm in arms],
            "all trials": [f"{min(found[arm]):.3f} to {max(found[arm]):.3f}" if found[arm] else "" for arm in arms],
        }
    )


def own_words(results: Results, arm: str) -> list[str]:
    """Return the words of an arm's final runs that its trials do not share: the tuned values."""
    final = next(result for result in results.of(arm, IMAGES))
    trials = [set(result.words.split()) for result in results.of(arm, TRIAL)]
    shared = set.intersection(*trials) if trials else set(final.words.split())
    return [word for word in final.words.split() if word not in shared and not word.startswith(RUNS_OWN)]


RUNS_OWN = ("seed=", "trainer.max_steps=", "fidelity.interval=")


def mean(results: Results, arm: str, figure: str, stage: str = IMAGES) -> float:
    """Return the mean of a figure over an arm's runs; NaN without runs."""
    own = values(results, arm, figure, stage).values()
    return statistics.fmean(own) if own else float("nan")


def first(results: Results, arm: str, figure: str) -> float | None:
    """Return a figure of the first final run of an arm that has it."""
    return next(iter(values(results, arm, figure).values()), None)


def spread(results: Results, arm: str, figure: str, digits: int = 3) -> str:
    """Return mean and standard deviation of a figure; an empty text without runs."""
    own = list(values(results, arm, figure).values())
    if not own:
        return ""
    return f"{statistics.fmean(own):.{digits}f}" + (f" ± {statistics.stdev(own):.{digits}f}" if len(own) > 1 else "")


def times(value: float | None, reference: float | None, digits: int = 2) -> str:
    """Return a value as a multiple of the reference's."""
    return f"{value / reference:.{digits}f}" if value is not None and reference else ""


def markdown(columns: dict[str, list[str]]) -> str:
    """Return a table in Markdown, without columns that are empty."""
    kept = {title: cells for title, cells in columns.items() if any(cells)}
    lines = [list(kept), ["---"] * len(kept), *map(list, zip(*kept.values(), strict=True))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def failed(results: Results) -> list[Result]:
    """Return the final runs that did not finish."""
    return [r for r in results.all if r.stage in (COST, IMAGES, SECONDS) and r.status != "finished"]
