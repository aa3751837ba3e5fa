"""The cases of the conformance tester, and their heads and batches."""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import heads.objectives.softmax
from heads import CenterHead, CosFace, Margin, RowSGD
from heads.core import counter_rng
from heads.core.options import option_fields
from tests import reference
from tests.heads.margins.table import CLASS_COUNTS, MARGINS, NUM_CLASSES
from tests.reference import MarginRule, Rule

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Case:
    """A head with its options and its input.

    `batches` contains the size of the global batch for each micro-batch of each step. The processes get unequal parts
    of it.
    """

    head: type[CenterHead]
    options: Mapping[str, Any] = field(default_factory=dict)
    margin: Margin = field(default_factory=CosFace)
    rule: MarginRule = field(default_factory=lambda: Rule(reference.cosface))
    later_rules: Mapping[int, MarginRule] = field(default_factory=dict)  # those from a step on
    objective: Any = None  # None: that of the head
    formula: reference.Objective = reference.softmax
    shared_bias: float | None = None  # its value before the first step
    rows_per_class: int = 1
    fixed_rows: Tensor | None = None  # (C, D) rows of the reference, for a head that computes its rows
    num_classes: int = 101
    embedding_size: int = 32
    batches: tuple[tuple[int, ...], ...] = ((8,), (5,), (6, 3))
    weighted: bool = False
    spread: bool = False  # embeddings of many lengths and at many angles to their centers
    dtype: torch.dtype = torch.float32
    chunk_rows: int = 8  # small, so that small cases have many chunks
    optimizer: Callable[..., Any] = RowSGD
    optimizer_options: Mapping[str, Any] = field(default_factory=lambda: SGD)

    def rule_at(self, step: int) -> MarginRule:
        """Return the formula of the margin at a step."""
        return {0: self.rule, **self.later_rules}[max(start for start in (0, *self.later_rules) if start <= step)]


def with_margins(case: Case, *, refused: Collection[str] = (), recomputing: bool = False) -> dict[str, Case]:
    """Return the case with every margin of the table but those that the objective refuses, by name.

    The batches are spread over lengths and angles, so that they reach every branch of the formulas. Those for margins
    of inner products are not, because their softmax would saturate. The last batch has one sample. With `recomputing`
    the head keeps nothing for its backward pass.
    """
    batches = ((8,), (6, 3), (1,))
    case = replace(case, num_classes=NUM_CLASSES, embedding_size=16, batches=batches)
    budget = {"logits_budget_mb": 0} if recomputing else {}
    cases = {}
    for name, (margin, rule) in MARGINS.items():
        counts = {"class_counts": CLASS_COUNTS} if margin.uses_class_counts else {}
        if name not in refused:
            options = {**case.options, **budget, **counts}
            named = f"{case.head.__name__}, {name}" if recomputing else name
            cases[named] = replace(case, margin=margin, rule=rule, options=options, spread=margin.normalize)
    return cases


def build(case: Case) -> CenterHead:
    """Return the head of the case in a worker."""
    heads.objectives.softmax.CHUNK_ROWS = case.chunk_rows
    options: dict[str, Any] = {"margin": copy.deepcopy(case.margin)}
    if "dtype" in option_fields(case.head):
        options["dtype"] = case.dtype
    if case.objective is not None:
        options["objective"] = copy.deepcopy(case.objective)
    head = case.head(case.num_classes, case.embedding_size, **{**options, **case.options})
    if case.spread:
        shard = head.centers.shard
        rows = head.centers.rows.view(shard.size, case.rows_per_class, -1)
        rows[:, :, : case.embedding_size] = initial_rows(case)[head.centers.classes(slice(0, shard.size))]
    return head


def global_batch(case: Case, step: int, micro: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings, labels and weights of all processes, the same on every process."""
    size = case.batches[step][micro]
    generator = torch.Generator().manual_seed(1000 * step + micro)
    embeddings = 3 * torch.randn(size, case.embedding_size, generator=generator, dtype=case.dtype)
    labels = torch.randint(case.num_classes, (size,), generator=generator)
    labels[-1] = labels[0]  # two samples of a class
    weight = torch.rand(size, generator=generator, dtype=case.dtype) if case.weighted else torch.ones(size)
    if case.spread:
        embeddings = spread_out(embeddings, initial_centers(case)[labels], generator)
    return embeddings, labels, weight.to(case.dtype)


def spread_out(embeddings: Tensor, centers: Tensor, generator: torch.Generator) -> Tensor:
    """Return embeddings of lengths from 5 to 130, with cosines from -0.95 to 0.95 with the centers, in any order."""
    size = len(embeddings)
    cos = torch.linspace(-0.95, 0.95, size)[torch.randperm(size, generator=generator), None].to(embeddings.dtype)
    length = torch.linspace(5, 130, size)[torch.randperm(size, generator=generator), None].to(embeddings.dtype)
    along = normalize(centers.to(embeddings.dtype))
    across = normalize(embeddings - (embeddings * along).sum(1, keepdim=True) * along)
    return length * (cos * along + (1 - cos**2).sqrt() * across)


def initial_centers(case: Case) -> Tensor:
    """Return the centers that training starts from if the case is spread out; the steps change them little."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(case.num_classes, case.embedding_size, generator=generator, dtype=case.dtype)


def initial_rows(case: Case) -> Tensor:
    """Return the rows (C, rows_per_class, D) around the initial centers; a single row is the center."""
    generator = torch.Generator().manual_seed(8)
    shape = (case.num_classes, case.rows_per_class, case.embedding_size)
    apart = torch.randn(shape, generator=generator, dtype=case.dtype) * (case.rows_per_class > 1)
    return initial_centers(case)[:, None] + 0.5 * apart


def standard_normal(case: Case, step: int, micro: int) -> Tensor:
    """Return the numbers that `ElasticFace` draws. They are data to the reference, as the batch is."""
    generator = counter_rng.generator("elastic margin", case.options.get("seed", 0), step, micro)
    return torch.randn(case.batches[step][micro], generator=generator, dtype=case.dtype)


def part_of(size: int, rank: int, world_size: int) -> slice:
    """Return the part of a process. The parts are unequal, and that of the last process may be empty."""
    bounds = [0, *sorted(min(size, 3 * (r + 1) + r) for r in range(world_size - 1)), size]
    return slice(bounds[rank], bounds[rank + 1])
