"""Plots of studies: the runs of each arm as points, and curves over the number of active classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from .report import IMAGES, NUMBER, RANK1, SECONDS, TAR, arms_of, by_classes, first, mean, values
from .results import Results

TITLES = {RANK1: "rank-1", TAR: "TAR at a FAR of 1e-4"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of Okabe and Ito, different for the colour-blind too
MARKERS = "osD^"
REACH = 0.15  # arms that are further below the reference stand at the edge of a plot, with their mean


def drawn(draw: Callable[[Any], Any], path: Path) -> None:
    """Draw into a file of reproducible content."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = draw(plt)
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


def dots(results: Results, reference: str, path: Path) -> None:
    """Draw rank-1 and TAR of each arm: a point for each seed, and a bar at the mean."""
    arms = sorted(arms_of(results), key=lambda arm: mean(results, arm, RANK1))

    def draw(plt: Any) -> Any:
        figure, panels = plt.subplots(1, 2, figsize=(9, 0.6 + 0.27 * len(arms)), sharey=True, layout="constrained")
        for panel, (name, title) in zip(panels, TITLES.items(), strict=True):
            stages = [(IMAGES, COLOURS[0], "o", "equal images"), (SECONDS, COLOURS[1], "x", "equal seconds")]
            edge = mean(results, reference, name) - REACH
            for place, arm in enumerate(arms):
                for stage, colour, marker, _ in stages:
                    own = list(values(results, arm, name, stage).values())
                    height = place + (0.14 if stage == IMAGES else -0.14) * (SECONDS in stages_of(results))
                    if own and (centre := mean(results, arm, name, stage)) < edge:
                        at_left = {"transform": panel.get_yaxis_transform(), "va": "center", "fontsize": "small"}
                        panel.text(0.01, height, f"← {centre:.2f}", color=colour, **at_left)
                        continue
                    panel.plot(own, [height] * len(own), marker, color=colour, alpha=0.6, markersize=4)
                    if own:
                        panel.plot([mean(results, arm, name, stage)] * 2, [height - 0.2, height + 0.2], color=colour)
            panel.axvline(mean(results, reference, name), color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            panel.set(xlabel=title, yticks=range(len(arms)), yticklabels=arms)
            panel.set_ylim(-0.6, len(arms) - 0.4)
            panel.grid(axis="x", alpha=0.25)
        if SECONDS in stages_of(results):
            handles = [panels[0].plot([], [], mark, color=colour)[0] for _, colour, mark, _ in stages]
            panels[0].legend(handles, [label for *_, label in stages], fontsize="small", loc="lower right")
        return figure

    drawn(draw, path)


def stages_of(results: Results) -> set[str]:
    """Return the stages that have results."""
    return {result.stage for result in results.all}


def number(results: Results, path: Path) -> None:
    """Draw how far sampled classes are from all classes, over their number and over their share."""

    def draw(plt: Any) -> Any:
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
        for place, (classes, (full, arms)) in enumerate(by_classes(results).items()):
            base = values(results, full, RANK1)
            active = [first(results, arm, NUMBER) or 0 for arm in arms]
            gaps = [
                [100 * (value - base[seed]) for seed, value in values(results, arm, RANK1).items() if seed in base]
                for arm in arms
            ]
            style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            for panel, share in zip(panels, (1, classes), strict=True):
                across = [each / share for each in active]
                panel.plot(across, [sum(each) / len(each) for each in gaps], label=f"{classes:,} classes", **style)
                for x, each in zip(across, gaps, strict=True):
                    panel.plot([x] * len(each), each, ".", color=style["color"], alpha=0.5, markersize=4)
        for panel, title in zip(panels, ("active classes", "share of the classes that is active"), strict=True):
            panel.axhline(0, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            panel.set(xscale="log", xlabel=title)
            panel.grid(alpha=0.25)
        counts = sorted(
            {round(first(results, arm, NUMBER) or 0) for _, arms in by_classes(results).values() for arm in arms}
        )
        panels[0].set_xticks(counts, [f"{count:,}" for count in counts])
        panels[0].minorticks_off()
        panels[0].set_ylabel("rank-1, points from all classes")
        panels[0].legend(fontsize="small")
        return figure

    drawn(draw, path)
