"""The parts of a training, each built from the config."""

from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.records import DataSet
from data.streams import STREAMS, BatchLoader
from heads import Head

from ..command_line.hints import did_you_mean
from ..head_name import head_name
from ..head_parts import head_parts, takes
from ..instantiate import instantiate
from ..launching.processes import Processes
from ..protocols import EvaluationProtocol, build_protocols
from .openset import names as open_set_names
from .row_file import is_file
from .warm_start import WarmStart


def build_data(config: DictConfig, processes: Processes) -> DataSet:
    """Build the data set. Raise ValueError on all processes unless it has the same size on each."""
    data: DataSet = instantiate(config.noise, _partial_=True)(instantiate(config.data))
    data = instantiate(config.weights, _partial_=True)(data)
    sizes = processes.gather((data.train.num_classes, len(data.train), len(data.heldout or ())))
    for rank, (classes, records, heldout) in enumerate(sizes):
        if sizes[rank] != sizes[0]:
            raise ValueError(
                f"data differ between processes: process {rank} finds {records:,} training records of {classes:,} "
                f"classes and {heldout:,} held-out records, process 0 finds {sizes[0][1]:,} of {sizes[0][0]:,} and "
                f"{sizes[0][2]:,}; all machines must see the same files, or have the same typefaces"
            )
    return data


def build_evaluation_protocols(config: DictConfig, data: DataSet) -> list[EvaluationProtocol]:
    """Build the protocols. Raise ValueError if `checkpoint.best` names a metric that no evaluation measures."""
    protocols = build_protocols(config)
    best = config.checkpoint.best
    if best is None:
        return protocols
    metrics = [f"val/{name}" for name in (open_set_names(config.evaluate.far) if data.heldout else [])]
    prefixes = [f"val/{name}/" for protocol in protocols for name in protocol.names]
    if not metrics and not prefixes:
        raise ValueError(
            f"checkpoint.best={best} cannot be measured: no classes are held out and no protocol is chosen; set "
            "data.num_heldout, or protocol=lfw"
        )
    if best not in metrics and not best.startswith(tuple(prefixes)):
        available = ", ".join([*metrics, *(f"{prefix}..." for prefix in prefixes)])
        raise ValueError(
            f"checkpoint.best={best} is not measured: {did_you_mean(best, metrics)}the evaluation measures {available}"
        )
    return protocols


def build_warm_start(config: DictConfig, data: DataSet, checkpoint: str | None) -> WarmStart | None:
    """Open the checkpoint and the rows of a warm start; a resumed training has none."""
    options = config.warm_start
    if checkpoint is not None or (options.checkpoint is None and not is_file(options.rows)):
        return None
    return WarmStart(options, data.train.num_classes, config.embedding_size)


def build_head(config: DictConfig, data: DataSet, backbone: nn.Module) -> Head:
    """Build the head, and give it the backbone that it will train with."""
    parts = head_parts(config)
    kind: type[Head] = get_class(config.head._target_)
    if takes(kind, "seed"):
        parts["seed"] = config.seed
    if "margin" in parts and parts["margin"].uses_class_counts:
        parts["class_counts"] = data.train.class_counts()
    if kind.needs_records:
        parts["num_records"] = len(data.train)
    head: Head = instantiate(
        config.head,
        num_classes=data.train.num_classes,
        embedding_size=config.embedding_size,
        **parts,
    )
    head.prepare(backbone)
    if not is_trained(backbone) and not head.sharded_state():
        raise ValueError(
            f"head={head_name(config)} stores no class centers, and the backbone has no parameters to train, so that "
            f"nothing would learn; use head=full, pfc or forest, or {train_instead(config)}"
        )
    return head


def train_instead(config: DictConfig) -> str:
    """Return what gives a training a backbone to train."""
    return "trainer.freeze_backbone=false" if config.trainer.freeze_backbone else "backbone=mlp"


def is_trained(backbone: nn.Module) -> bool:
    """Return whether a backbone has parameters to train."""
    return any(parameter.requires_grad for parameter in backbone.parameters())


def build_loader(config: DictConfig, data: DataSet, head: Head, processes: Processes) -> BatchLoader:
    """Build the loader of the streams that the head trains on, for the whole training."""
    common = {"seed": config.seed, "rank": processes.rank, "world_size": processes.world_size}
    common["records"] = head.needs_records
    own: dict[str, Any] = {"identity": {"images_per_class": head.images_per_class}}
    streams = {
        name: STREAMS[name](data, size, **common, **own.get(name, {}))
        for name, size in head.stream_sizes(config.batch_size).items()
    }
    accumulate = config.trainer.accumulate_grad_batches
    num_batches = number_of_steps(config.trainer, len(data.train) // config.batch_size) * accumulate
    return BatchLoader(streams, num_batches, config.batch_size, config.num_workers, ahead=accumulate)


def number_of_steps(trainer: DictConfig, batches_per_epoch: int) -> int:
    """Return the optimizer steps of the whole training, from `max_steps` or `max_epochs`."""
    steps = trainer.max_steps
    if steps is None:
        steps = round(trainer.max_epochs * batches_per_epoch / trainer.accumulate_grad_batches)
    if steps < 1:
        raise ValueError(f"the training has {steps} steps; raise trainer.max_steps or trainer.max_epochs")
    return int(steps)


def build_optimizers(
    config: DictConfig, backbone: nn.Module, head: Head, num_steps: int
) -> tuple[list[Optimizer], list[LambdaLR]]:
    """Build the optimizers of the backbone and of the head's rows, and the learning-rate schedule of each."""
    optimizer = config.optimizer
    parameters: list[Any] = [p for p in backbone.parameters() if p.requires_grad]
    of_backbone: Optimizer = instantiate(optimizer.backbone)(
        parameters or [{"params": []}], lr=_learning_rate(optimizer.backbone, optimizer.lr)
    )
    # A head without rows has no rule.
    rule = {"rule": instantiate(optimizer.rows)} if "_target_" in (optimizer.rows or {}) else {}
    of_rows = head.optimizer(lr=_learning_rate(optimizer.rows, optimizer.lr), **rule)
    factor = instantiate(config.schedule, num_steps=num_steps)
    optimizers = [of_backbone, of_rows]
    return optimizers, [LambdaLR(optimizer, factor) for optimizer in optimizers]


def _learning_rate(part: DictConfig | None, common: float) -> float:
    """Return the learning rate of one optimizer: its own `lr`, or else `optimizer.lr`."""
    own = None if part is None else part.get("lr")
    return common if own is None else own
