"""Plots of protocol results, drawn without a display."""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from . import Result
from .rates import Rates

DET_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5)
POINTS = 2000  # most points of a curve


def plot(result: Result, path: Path) -> None:
    """Draw ROC, DET and score histogram of verification, or the CMC of identification, into a file."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    is_verification = "rates" in result.curves
    size = (14, 4.3) if is_verification else (6, 4.3)
    figure, panels = plt.subplots(1, 3 if is_verification else 1, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained")
    counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items() if value)
    name = result.name.replace("$", r"\$")  # matplotlib would typeset it as a formula
    figure.suptitle(f"{name}: {counts}" if is_verification else f"{name}\n{counts}", fontsize="medium")
    if is_verification:
        _roc(panels[0, 0], result)
        _det(panels[0, 1], result.curves["rates"])
        _histogram(panels[0, 2], result.curves["scores"], result.curves["same"])
    else:
        _cmc(panels[0, 0], result)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def thinned(rates: Rates) -> NDArray[np.int64]:
    """Return the cuts that a curve needs to look complete on linear and logarithmic axes."""
    count = len(rates.far)
    if count <= POINTS:
        return np.arange(count)
    positive = rates.far[rates.far > 0]
    far = np.concatenate([np.geomspace(positive.min(), 1, POINTS // 2), np.linspace(0, 1, POINTS // 4)])
    cuts = np.searchsorted(rates.far, far, side="right") - 1
    rising = np.searchsorted(rates.tar, np.linspace(0, 1, POINTS // 4)).clip(max=count - 1)
    return np.unique(np.concatenate([cuts, rising, [0, count - 1]]))


def _roc(panel: Any, result: Result) -> None:
    rates: Rates = result.curves["rates"]
    cuts = thinned(rates)
    lowest = min(rates.far[rates.far > 0].min(), 0.5)
    panel.step(np.maximum(rates.far[cuts], lowest), rates.tar[cuts], where="post")
    for name, (low, high) in result.intervals.items():
        if name.startswith("tar_at_far_") and float(name.removeprefix("tar_at_far_")) >= lowest:
            far = float(name.removeprefix("tar_at_far_"))
            panel.vlines(far, low, high, color="C0", alpha=0.4, linewidth=4)
    bottom = max(0.0, float(rates.tar[rates.far <= lowest].max()) - 0.05)
    panel.set(xscale="log", xlim=(lowest, 1), ylim=(bottom, 1 + 0.02 * (1 - bottom)), title=f"ROC, AUC {rates.auc:.4f}")
    panel.set(xlabel="false accept rate", ylabel="true accept rate")
    panel.grid(alpha=0.3)


def _det(panel: Any, rates: Rates) -> None:
    probit = np.vectorize(NormalDist().inv_cdf)
    cuts = thinned(rates)
    far, frr = rates.far[cuts], 1 - rates.tar[cuts]
    inside = (far > 0) & (far < 1) & (frr > 0) & (frr < 1)
    if inside.any():
        panel.plot(probit(far[inside]), probit(frr[inside]))
        panel.plot(probit(rates.eer), probit(rates.eer), "o", color="C0") if 0 < rates.eer < 1 else None
        lowest = min(far[inside].min(), frr[inside].min())
        ticks = [tick for tick in DET_TICKS if tick >= lowest / 10] or [0.5]
        panel.set_xticks(probit(ticks), [f"{tick:g}" for tick in ticks])
        panel.set_yticks(probit(ticks), [f"{tick:g}" for tick in ticks])
        limits = probit([max(lowest / 2, 1e-9), 0.6])
        panel.set(xlim=limits, ylim=limits)
    else:
        panel.text(0.5, 0.5, "no error at any threshold", ha="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
    panel.set(xlabel="false accept rate", ylabel="false reject rate", title=f"DET, EER {rates.eer:.4f}")
    panel.grid(alpha=0.3)


def _histogram(panel: Any, scores: NDArray[np.float64], same: NDArray[np.bool_]) -> None:
    edges = np.linspace(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1, 81)
    for chosen, label in ((same, "one class"), (~same, "two classes")):
        panel.hist(scores[chosen], edges, weights=np.full(chosen.sum(), 1 / chosen.sum()), alpha=0.6, label=label)
    panel.set(xlabel="score", ylabel="share of the pairs", title="Scores")
    panel.legend()
    panel.grid(alpha=0.3)


def _cmc(panel: Any, result: Result) -> None:
    ranks, share = result.curves["cmc"]
    panel.plot(ranks, share, marker="." if len(ranks) < 30 else None)
    panel.set(xscale="log", xlabel="rank", ylabel="share found", ylim=(min(0.9, share[0] - 0.05), 1.005), title="CMC")
    panel.grid(alpha=0.3, which="both")
