"""`bench=head_step`: forward pass, backward pass and update of a head, compared with plain implementations.

`dense` is plain autograd over all classes: F.linear, cross_entropy, torch.optim.SGD. `linear_cross_entropy` is torch's
function of this name, also in chunks. `indexed` selects the sampled rows of a Parameter by indexing, as PartialFC
implementations do: its gradient and its SGD step have the size of all classes. The floor is the time of the necessary
matrix products alone. The limit adds one copy of the active rows and of their state, there and back.
"""

import shutil
import statistics
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch

from heads import CenterHead, CosFace, FullFC, PartialFC, RowAdagrad
from heads.core.options import option_fields

from ..tables import console
from .baselines import BASELINES, SGD, baseline, missing, three_parts, update_with
from .cold_files import cold_files
from .measure import Measured, Step, Subject, compared, ratio, timed
from .rates import copies, products

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "momentum": SGD,
    "momentum-bf16": {**SGD, "momentum_dtype": "bf16"},
    "sgd": {"lr": 0.1, "momentum": 0, "weight_decay": 5e-4},
    "adagrad": {"rule": RowAdagrad, "lr": 0.1},
}
HEADS: dict[str, type[CenterHead]] = {"full": FullFC, "pfc": PartialFC}
COLD = "disk-cold"  # store=disk with rows that earlier steps have written and that are not in memory


def head_step(
    heads: list[str],
    num_classes: list[int],
    sample_rate: list[float],
    batch: list[int],
    embedding_size: list[int],
    baselines: list[str],
    device: str,
    warmup: int,
    repeats: int,
    store_dir: str,
    cycle: int,
    **options: list[Any],
) -> list[dict[str, Any]]:
    """Return a line of figures for each combination, and one for each baseline; the margin is CosFace.

    Args:
        sample_rate: share of the classes that pfc samples, or above 1 their number.
        baselines: names in `BASELINES`; each is measured with the head that it belongs to.
        store_dir: folder of the files of store=disk.
        cycle: steps with rows of their own, for store=disk-cold.
        options: `optimizer`, and lists of values of further options of the heads. All combinations of those that a
            head has are measured in turns with the first one.
    """
    known = {name for head in HEADS.values() for name in option_fields(head)} | {"optimizer"}
    _check("heads", heads, HEADS)
    _check("optimizer", options["optimizer"], OPTIMIZERS)
    _check("baselines", baselines, [name for names in BASELINES.values() for name in names])
    for name, values in options.items():
        if name not in known:
            raise ValueError(f"bench.{name} is an option of no head; options are {', '.join(sorted(known))}")
        _check(name, values)
    for name in filter(missing, baselines):
        console().print(f"note: torch {torch.__version__} has no linear_cross_entropy: {name} is left out")
    lines = []
    for name, C, N, D in product(heads, map(int, num_classes), batch, embedding_size):
        for rate in sample_rate if name == "pfc" else [1.0]:
            share = rate / C if rate > 1 else rate
            case = {"head": name, "num_classes": C, "sample_rate": share, "batch": N, "embedding_size": D}
            plain = [other for other in BASELINES[name] if other in baselines and not missing(other)]
            files = {"store_dir": store_dir, "cycle": cycle}
            lines += _measure(case, variants(name, options), plain, device, files, warmup, repeats)
            shutil.rmtree(store_dir, ignore_errors=True)
    return lines


def variants(head: str, options: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the options that the head has."""
    own = [name for name in options if name == "optimizer" or name in option_fields(HEADS[head])]
    return [dict(zip(own, values, strict=True)) for values in product(*(options[name] for name in own))]


def _check(option: str, values: list[Any], known: Iterable[str] | None = None) -> None:
    if not isinstance(values, list):
        raise ValueError(f"bench.{option}={values} must be a list, such as bench.{option}=[{values}]")
    if known is not None and (unknown := sorted(set(values) - set(known))):
        raise ValueError(f"bench.{option}={unknown} must be among {', '.join(known)}")


def _measure(
    case: Mapping[str, Any],
    options: list[dict[str, Any]],
    baselines: list[str],
    device: str,
    files: Mapping[str, Any],
    warmup: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return lines of a head with each of these options, and of its baselines."""
    num_active = active(case["sample_rate"], case["num_classes"])
    builds, names = [], []
    for number, variant in enumerate(options):
        own = {**files, "store_dir": f"{files['store_dir']}/{number}"}
        builds.append(partial(Subject, ours, **case, options=variant, device=device, **own))
        names.append({**case, **variant})
    for name in baselines:
        sizes = {size: case[size] for size in ("num_classes", "batch", "embedding_size")}
        builds.append(partial(Subject, baseline, name=name, num_active=num_active, device=device, **sizes))
        names.append({**case, "head": name})
    measured = compared(builds, warmup, repeats)
    return [
        {**name, "active": num_active, **_figures(one, measured[0])} for name, one in zip(names, measured, strict=True)
    ]


def _figures(measured: Measured, first: Measured) -> dict[str, float]:
    figures = {**measured.figures(), "over_first": measured.over_first}
    figures["peak_over_first"] = measured.peak_bytes / first.peak_bytes
    for limit in ("floor", "limit"):
        if limit in measured.parts:
            figures[f"over_{limit}"] = ratio(measured.totals, measured.parts[limit])
    if "read_bytes" in measured.parts:
        figures["read_bytes"] = statistics.median(measured.parts["read_bytes"])
    return figures


def active(sample_rate: float, num_classes: int) -> int:
    return max(1, round(sample_rate * num_classes))


def ours(
    head: str,
    num_classes: int,
    sample_rate: float,
    batch: int,
    embedding_size: int,
    options: Mapping[str, Any],
    device: str,
    store_dir: str,
    cycle: int,
) -> Step:
    """Return the step of a head of this project, which also measures "floor" and "limit"."""
    given = {name: value for name, value in options.items() if name != "optimizer"}
    cold = given["store"] == COLD
    if head == "pfc":
        given["sample_rate"] = sample_rate
    if cold or given["store"] == "disk":
        given |= {"store": "disk", "store_dir": store_dir}

    def build() -> Step:
        built = HEADS[head](num_classes, embedding_size, margin=CosFace(), device=device, **given)
        rows = built.optimizer(**OPTIMIZERS[options["optimizer"]])
        if given["store"] != "disk":
            allocate_state(built)
        step = three_parts(built, update_with(rows), num_classes, batch, embedding_size, device)
        return with_limits(step, built, active(sample_rate, num_classes), batch)

    return cold_files(build, store_dir, cycle) if cold else build()


def allocate_state(head: CenterHead) -> None:
    """Allocate the memory of the row state, which the first steps would do otherwise."""
    for table in head.centers.state.values():
        table.zero_()


def with_limits(step: Step, head: CenterHead, num_active: int, batch: int) -> Step:
    """Return the step with the parts "floor" and "limit", measured next to it."""
    device = head.centers.like.device.type
    kept = num_active * batch * 4 <= head.options.logits_budget_mb * 2**20
    floor = products(num_active, batch, head.embedding_size, 3 if kept else 5, device)
    kinds = [(table.shape[1], table.dtype) for table in head.sharded_state().values()]
    by_kind = {kind: copies(num_active, *kind, device) for kind in set(kinds)}

    def with_limits() -> dict[str, float]:
        parts = step()
        floor_ms = timed(floor, device)[0]
        return {**parts, "floor": floor_ms, "limit": floor_ms + sum(timed(by_kind[kind], device)[0] for kind in kinds)}

    return with_limits
