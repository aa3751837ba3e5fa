"""What a head will need, by its own formula, from the config alone."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from heads import Head
from heads.centers import RowState
from heads.cost import Case, Cost

from .build import build


def cost_of(config: DictConfig) -> Callable[[Case], Cost]:
    """Return the cost of the configured head as a function of the case; `Head.cost` with the options filled in."""
    options = {str(name): each for name, each in config.head.items() if name != "_target_"}
    built = {name: build(each) if isinstance(each, DictConfig) else each for name, each in options.items()}
    head: type[Head] = get_class(config.head._target_)
    rows = config.optimizer.rows
    rule = build(rows) if rows and "_target_" in rows else None  # a head may have none
    return lambda case: head.cost(case, row_state=row_state(rule, case.embedding_size) if rule else {}, **built)


def row_state(rule: Callable[..., Any], width: int) -> Mapping[str, RowState]:
    """Return what a row optimizer keeps of each row, without rows."""
    nothing = SimpleNamespace(width=width, claim=lambda state: None)
    state: Mapping[str, RowState] = rule(SimpleNamespace(centers=nothing), lr=1.0).row_state(width)
    return state
