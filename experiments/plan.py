"""`python -m experiments.plan num_classes=1e8 devices=8 memory_gb=80`: the needs of each head, and what fits.

Memory, bytes between processes and multiply-adds come from the heads' own formulas (`Head.cost`). A lower bound on the
time of a step comes from the speed of the hardware in the config.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.plan")
    from .command_line.arguments import check_or_exit

    check_or_exit("plan")


import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from data.options import whole

from .command_line.config_files import CONF, choices_of
from .command_line.hints import unknown_choice
from .head_parts import head_options
from .imports import end_imports
from .instantiate import instantiate, with_checked_types
from .tables import Cell, console, packed

if TYPE_CHECKING:  # heads import torch, which takes longer than the rest of this command
    from heads import Head
    from heads.core.cost import Case, Cost
    from heads.core.row_state import RowState

GB = 1e9
MOST_CLASSES = 10**13


@dataclass(frozen=True)
class Plan:
    """One configuration of a head.

    Args:
        names: names of its head, store, dtype and optimizer, and the class of its objective.
        cost: formula of its cost, which takes a case.
    """

    names: dict[str, str]
    cost: Callable[[Case], Cost]

    def needs(self, case: Case, machine: DictConfig) -> dict[str, float]:
        """Return the bytes on a device, in the host memory of a machine and on its disk."""
        cost, store = self.cost(case), self.names["store"]
        num_local = min(case.world_size, machine.devices_per_machine)
        return {
            "device": cost.work_bytes + (cost.table_bytes if store == "device" else 0),
            "host": num_local * (cost.index_bytes + (cost.table_bytes if store == "host" else 0)),
            "disk": num_local * cost.table_bytes if store == "disk" else 0,
        }

    def fits(self, case: Case, machine: DictConfig) -> bool:
        needs = self.needs(case, machine)
        return (
            needs["device"] <= (machine.memory_gb - machine.reserved_gb) * GB
            and needs["host"] <= machine.host_gb * GB
            and needs["disk"] <= machine.disk_gb * GB
        )

    def most_classes(self, case: Case, machine: DictConfig) -> int:
        """Return the largest number of classes that fits, or 0."""
        from heads.core.cost import TooManyClassesError

        low, high = 0, MOST_CLASSES
        while high - low > max(1, low // 10**6):
            middle = (low + high) // 2
            this = replace(case, num_classes=middle)
            try:
                fits = self.fits(this, machine)
            except TooManyClassesError:
                fits = False
            except ValueError:  # fewer classes than active ones
                fits = True
            low, high = (middle, high) if fits else (low, middle)
        return low

    def milliseconds(self, case: Case, machine: DictConfig) -> dict[str, float]:
        """Return the milliseconds of each part of a step, alone and at the full speed of the hardware."""
        cost, store = self.cost(case), self.names["store"]
        num_local = min(case.world_size, machine.devices_per_machine)
        times = {
            "compute": 2 * cost.multiply_adds / (machine.teraflops * 1e12),
            "network": cost.sent_bytes / (machine.network_gb_s * GB),
            "memory": cost.moved_bytes / (machine.memory_gb_s * GB),
        }
        if store == "host":
            times["host"] = cost.moved_bytes / (machine.host_gb_s * GB)
        if store == "disk":
            times["disk"] = num_local * cost.moved_bytes / (machine.disk_gb_s * GB)
        return {name: 1e3 * seconds for name, seconds in times.items()}


def plans(config: DictConfig) -> list[Plan]:
    """Return the plans of every head with every store, dtype and optimizer that it can have."""
    from heads.core.options import option_fields

    options = {name: value for name, value in config.options.items() if value is not None}
    for group, names in (("head", config.heads), ("store", config.stores), ("optimizer", config.optimizers)):
        for name in names:
            if name not in choices_of(group):
                raise ValueError(f"{group}s={list(names)} cannot be planned: {unknown_choice(group, name, 'config')}")
    combinations: list[Plan] = []
    used = set()
    for head in config.heads:
        composed = compose("config", [f"head={head}"])
        has_rows, has_dtype = "store" in composed.head, "dtype" in composed
        if "objective" in option_fields(get_class(composed.head._target_)):  # other heads have the softmax
            composed.objective = config.objective
        objective = composed.objective._target_.rpartition(".")[2]
        for name in (name for name in options if name in composed):
            OmegaConf.update(composed, name, options[name])
            used.add(name)
        for store, dtype, optimizer in product(
            config.stores if has_rows else ["device"],
            config.dtypes if has_dtype else ["fp32"],
            config.optimizers if has_rows else ["sgd"],
        ):
            if has_dtype:
                composed.dtype = dtype
            if has_rows:
                composed.head.store = store
            rule = OmegaConf.load(CONF / "optimizer" / f"{optimizer}.yaml").rows if has_rows else None
            names = {"head": head, "objective": objective, "store": store, "dtype": dtype}
            names["optimizer"] = optimizer if has_rows else ""
            combinations.append(Plan(names, cost_of(composed, rule)))
    if unused := sorted(set(options) - used):
        raise ValueError(
            f"options.{unused[0]}={options[unused[0]]} belongs to none of heads={list(config.heads)}; remove it"
        )
    return combinations


def cost_of(config: DictConfig, rule: DictConfig | None) -> Callable[[Case], Cost]:
    """Return the formula of a head and its row optimizer, of any case.

    Args:
        config: head, margin and objective, as in the config of a training.

    Raises:
        NotImplementedError: the head declares no options, so that its cost is unknown.
    """
    options = head_options(config)
    if rule:
        instantiate(rule)  # checks the options
        kind, chosen = get_class(rule._target_), with_checked_types(rule)
    state = cache(lambda width: row_state(kind, chosen, width) if rule else {})
    head: type[Head] = get_class(config.head._target_)
    return lambda case: head.cost(case, options, row_state=state(case.embedding_size))


def row_state(kind: type, options: Mapping[Any, Any], width: int) -> Mapping[str, RowState]:
    """Return the state that a row optimizer keeps per row, without creating rows.

    The optimizer is not initialized: the constructor of `torch.optim.Optimizer` imports torch's compiler.

    Args:
        options: options of its class; others are ignored.
    """
    from heads.core.options import make_options, option_fields

    own = {name: options[name] for name in option_fields(kind) if name in options}
    optimizer: Any = object.__new__(kind)
    optimizer.param_groups = [vars(make_options(kind, own))]
    state: Mapping[str, RowState] = optimizer.row_state(width)
    return state


def lines(config: DictConfig) -> list[dict[str, Any]]:
    """Return a line of figures for each plan, as in plan.json."""
    sizes = [whole(name, config[name], 1) for name in ("num_classes", "embedding_size", "batch", "devices")]
    from heads.core.cost import Case

    records = 0 if config.num_records is None else whole("num_records", config.num_records, 1)
    case = replace(Case(*sizes), num_records=records)
    if (case.world_size - 1) * case.shard >= case.num_classes:
        raise ValueError(
            f"num_classes={case.num_classes} is too small for devices={case.world_size}; use fewer devices"
        )
    result = []
    for plan in plans(config):
        cost, needs, times = plan.cost(case), plan.needs(case, config), plan.milliseconds(case, config)
        result.append(
            {
                **plan.names,
                "table_bytes": cost.table_bytes,
                "device_bytes": needs["device"],
                "host_bytes": needs["host"],
                "disk_bytes": needs["disk"],
                "sent_bytes": cost.sent_bytes,
                "multiply_adds": cost.multiply_adds,
                "step_ms": max(times.values()),
                "bottleneck": max(times, key=lambda name: times[name]),
                "fits": plan.fits(case, config),
                "most_classes": plan.most_classes(case, config),
            }
        )
    return result


SHOWN: dict[str, tuple[str, Callable[[Any], Cell]]] = {
    "device_bytes": ("device GB", lambda value: f"{value / GB:,.2f}"),
    "host_bytes": ("host GB", lambda value: f"{value / GB:,.1f}" if value else ""),
    "disk_bytes": ("disk GB", lambda value: f"{value / GB:,.1f}" if value else ""),
    "sent_bytes": ("sent MB", lambda value: f"{value / 1e6:,.2f}"),
    "multiply_adds": ("10^9 MACs", lambda value: f"{value / 1e9:,.1f}"),
    "step_ms": ("ms at least", lambda value: f"{value:,.2f}"),
    "bottleneck": ("bound by", str),
    "fits": ("fits", lambda value: Text("yes", "green") if value else Text("no", "red")),
    "most_classes": ("classes at most", lambda value: f"{value:.3g}"),
}


@hydra.main(config_path="../conf", config_name="plan", version_base="1.3")
def job(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        figures = lines(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    (folder / "plan.json").write_text(json.dumps(figures, indent=2) + "\n")
    keys = {name: [line[name] for line in figures] for name in ("head", "store", "dtype", "optimizer")}
    columns = {title: [show(line[name]) for line in figures] for name, (title, show) in SHOWN.items()}
    title = (
        f"{float(config.num_classes):,.0f} classes of {config.embedding_size}, batches of {config.batch} on "
        f"{config.devices} devices of {config.memory_gb} GB"
        f", objective {config.objective._target_.rpartition('.')[2]}"
    )
    screen = console()
    for table in packed(keys, columns, title, screen.width):
        screen.print(table)
    scheduled = any(isinstance(value, DictConfig) for value in config.options.values())
    screen.print(
        "Device, sent and MACs are those of one process in a step of the head; host and disk are those of a machine. "
        "The backbone is not included: it needs reserved_gb, and sends its own gradients."
        f"{' Of a schedule, the dearest step counts.' if scheduled else ''}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    end_imports()
    job()
