"""Options and figures that the fidelity measures share.

Legend: Q embeddings, D row width, R repeated selections.
"""

import torch
from torch import Tensor

from ..core.options import whole


def check_options(probes: int, repeats: int, hardest: int) -> tuple[int, int, int]:
    """Return the options as ints, or raise a ValueError unless all three are whole numbers of at least 1."""
    options = {"probes": probes, "repeats": repeats, "hardest": hardest}
    probes, repeats, hardest = (whole(f"fidelity.{name}", value, 1) for name, value in options.items())
    return probes, repeats, hardest


def evenly_spaced(count: int, probes: int) -> list[int]:
    """Return `probes` evenly spaced positions among `count`, or all of them if there are fewer.

    Samples of several kinds may follow one another in a batch, so the first ones would be of one kind only.
    """
    probes = min(probes, count)
    return [place * count // probes for place in range(probes)]


def compare_gradients(gradients_RQD: Tensor, exact_QD: Tensor) -> dict[str, float]:
    """Compare the gradients of repeated selections with the exact gradient, in float64.

    Returns:
        gradient_cosine and gradient_norm_ratio, means over selections; for R > 1 also gradient_bias and
        gradient_variance. See `selection_fidelity`.
    """
    gradients_RQD, exact_QD = gradients_RQD.double(), exact_QD.double()
    repeats = len(gradients_RQD)
    # One by one, so that equal gradients give equal sums bit for bit.
    square = (exact_QD * exact_QD).sum()
    squares_R = torch.stack([(gradient_QD * gradient_QD).sum() for gradient_QD in gradients_RQD])
    products_R = torch.stack([(gradient_QD * exact_QD).sum() for gradient_QD in gradients_RQD])
    both_zero_R = (squares_R == 0) & (square == 0)  # two zero gradients agree
    square = square.clamp(min=torch.finfo(torch.float64).tiny)
    cos_R = torch.where(both_zero_R, 1.0, (products_R / (squares_R * square).sqrt()).nan_to_num(0.0))
    ratio_R = torch.where(both_zero_R, 1.0, (squares_R / square).sqrt())
    figures = {"gradient_cosine": float(cos_R.mean()), "gradient_norm_ratio": float(ratio_R.mean())}
    if repeats > 1:
        variance = gradients_RQD.var(0).sum()
        error = (gradients_RQD.mean(0) - exact_QD).square().sum() - variance / repeats
        figures["gradient_bias"] = float((error / square).clamp(min=0).sqrt())
        figures["gradient_variance"] = float(variance / square)
    return figures
