"""Resume trainings of every kind on every number of processes, and compare all bytes with an undisturbed training.

    python -m tests.resume_matrix

The matrix has world sizes 1, 2 and 3 to save and to load, heads, stores and dtypes. On the same number of processes,
the losses, the rows with their state, and the backbone must be the same bits at the end. On another number, the rows
and their state must be the same right after loading. Cases without time left are listed. All other output is a fault.
"""

import argparse
import contextlib
import io
import itertools
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from experiments.training.module import HeadModule
from tests.experiments.commands import metrics
from tests.experiments.launching.test_processes import trained
from tests.workers import WorkerGroup, rank_and_world

WORLD_SIZES = (1, 2, 3)
MIDDLE, END = 3, 6
DATA = (
    "data=sphere",
    "data.num_classes=651",
    "data.num_heldout=50",
    "data.size=16",
    "backbone=mlp",
    "embedding_size=16",
)
SHORT = ("batch_size=60", "trainer.log_interval=1", "evaluate.interval=null")
STEPS = (f"trainer.max_steps={END}", f"checkpoint.interval={MIDDLE}", "checkpoint.keep=9")
WHERE = ("trainer.accelerator=cpu", "logger.wandb.mode=disabled")
HEADS = {
    "full": ["head=full"],
    "pfc": ["head=pfc", "sample_rate=0.3"],
    "pfc of blocks": ["head=pfc", "sample_rate=0.3", "sample_block=8"],
    "forest": ["head=forest", "index=ivf", "build=blocking", "interval=2", "num_active=0.3"],
    "knn": ["head=knn", "build=blocking", "interval=2", "num_active=0.3", "neighbours=20"],
    "staged": ["head=staged", "stages={0:pfc,2:knn,4:full}", "build=blocking", "interval=2", "neighbours=20"],
    "subcenter": ["head=subcenter", "sample_rate=0.3"],
    "mach": ["head=mach", "num_buckets=50"],
    "virtual": ["head=virtual", "num_anchors=100"],
    "prototypes": ["head=prototypes", "sample_rate=0.3", "objective=uniface"],
    "scent": ["head=scent", "sample_rate=0.3"],
    "ffc": ["head=ffc", "queue_size=100"],
    "none": ["head=none"],
}
States = dict[str, Any]  # "saved", "loaded", "end": name -> tensor


class LoadedError(Exception):
    """The end of a training that has loaded its checkpoint and should do nothing else."""


def cases() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the options of each training; ffc, prototypes and none keep no rows in a store."""
    for head, store, dtype in itertools.product(HEADS, ("device", "host", "disk"), ("fp32", "bf16")):
        if head not in ("ffc", "prototypes", "none"):
            yield f"{head} store={store} dtype={dtype}", [*HEADS[head], f"store={store}", f"dtype={dtype}"]
        elif store == "device" and head == "ffc":
            yield f"{head} dtype={dtype}", [*HEADS[head], f"dtype={dtype}"]
    for head in ("prototypes", "none"):
        yield head, HEADS[head]


def state_of(module: HeadModule) -> dict[str, Tensor]:
    """Return copies of the rows and row state of this process, or of its pool."""
    head = module.head
    if not hasattr(head, "centers"):
        state = head.get_extra_state()
        flat = {**state.pop("pool", {}), **state}
        return {name: torch.as_tensor(value).clone() for name, value in flat.items()}
    tables = {"rows": head.centers.read(slice(0, head.centers.shard.size)), **head.centers.state}
    if head.needs_records:
        tables["records"] = head.records.values
    return {name: table.clone() for name, table in tables.items()}


def watched(words: list[str], folder: Path, only_load: bool) -> tuple[int, States, str]:
    """Train in a worker; return the exit status, the states during the training, and the output."""
    seen: States = {}
    original = HeadModule.on_save_checkpoint, HeadModule.on_train_end

    def start(module: HeadModule) -> None:
        seen["loaded"] = state_of(module)
        if only_load:
            raise LoadedError

    def save(module: HeadModule, checkpoint: dict[str, Any]) -> None:
        if module.step == MIDDLE:
            seen["saved"] = state_of(module)
        original[0](module, checkpoint)

    def end(module: HeadModule) -> None:
        seen["end"] = state_of(module) | {name: p.detach().clone() for name, p in module.backbone.state_dict().items()}
        original[1](module)

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    printed, status = io.StringIO(), -1
    hooks = {"on_train_start": start, "on_save_checkpoint": save, "on_train_end": end}
    _, world_size = rank_and_world()
    place = [f"store_dir={folder}/rows-{world_size}"] if "store=disk" in words else []
    with (
        patch.multiple(HeadModule, **hooks),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(LoadedError),
    ):
        status = trained([*words, *place], folder)
    return status, seen, printed.getvalue()


def joined(of_ranks: list[tuple[int, States, str]], when: str, name: str) -> Tensor:
    """Return a tensor of all classes: the parts of all processes, or the tensor that all hold."""
    parts = [seen[when][name] for _, seen, _ in of_ranks]
    return parts[0] if len({tuple(part.shape) for part in parts}) == 1 and name not in SHARDED else torch.cat(parts)


SHARDED = ("rows", "momentum", "records")


def differing(one: list[Any], when: str, other: list[Any], then: str) -> list[str]:
    """Return the names of tensors whose bytes differ."""
    names = one[0][1][when]
    assert names.keys() == other[0][1][then].keys()
    return [name for name in names if bytes_of(joined(one, when, name)) != bytes_of(joined(other, then, name))]


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def check(options: list[str], group: Callable[[int], WorkerGroup], saved_on: int, folder: Path) -> list[str]:
    """Train on `saved_on` processes and resume on every number of processes; return the differences."""

    def run(world_size: int, name: str, *more: str, only_load: bool = False) -> list[Any]:
        words = [*options, *DATA, *SHORT, *STEPS, *WHERE, *more]
        of_ranks = group(world_size).run(watched, words, folder / name, only_load)
        for status, _, printed in of_ranks:
            if status and not only_load:
                raise RuntimeError(f"{name} on {world_size} ended with status {status}:\n{printed}")
        return of_ranks

    faults = []
    whole = run(saved_on, "whole")
    middle = f"resume={folder / 'whole' / 'checkpoints' / f'step-{MIDDLE:08d}'}"
    for world_size in WORLD_SIZES:
        same = world_size == saved_on
        again = run(world_size, f"on-{world_size}", middle, only_load=not same)
        if wrong := differing(whole, "saved", again, "loaded"):
            faults.append(f"loaded on {world_size}: {', '.join(wrong)} differ")
        if same:
            if wrong := differing(whole, "end", again, "end"):
                faults.append(f"resumed on {world_size}: {', '.join(wrong)} differ at the end")
            losses, after = (metrics(folder / name, "train/loss") for name in ("whole", f"on-{world_size}"))
            if after != {step: loss for step, loss in losses.items() if step > MIDDLE} or len(losses) != END:
                faults.append(f"resumed on {world_size}: losses differ")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7, help="time after which no further case begins")
    options = parser.parse_args()
    begin, groups = time.monotonic(), {}

    def group(world_size: int) -> WorkerGroup:
        if world_size not in groups:
            groups[world_size] = WorkerGroup(world_size)
        return groups[world_size]

    failed, done, left = 0, 0, []
    # One world size after the other, so that every head, store and dtype comes early.
    for saved_on, (name, words) in itertools.product(WORLD_SIZES[::-1], cases()):
        if time.monotonic() - begin > 60 * options.minutes:
            left.append(f"{name} saved on {saved_on}")
            continue
        with tempfile.TemporaryDirectory(prefix="headcount-matrix-") as folder:
            try:
                faults = check(words, group, saved_on, Path(folder))
            except Exception:
                faults = [traceback.format_exc()]
        done += 1
        failed += bool(faults)
        for fault in faults:
            print(f"{name}, saved on {saved_on}: {fault}", flush=True)
    for started in groups.values():
        started.close()
    if left:
        print(f"No time was left for {len(left)} cases: {'; '.join(left)}")
    print(f"{done} trainings resumed on {len(WORLD_SIZES)} numbers of processes each; {failed} with faults")
    sys.exit(bool(failed or left))


if __name__ == "__main__":
    main()
