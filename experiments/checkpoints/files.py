"""The files of a checkpoint, as torch.distributed.checkpoint asks for them: blocks of bytes, each with its digest.

A process writes one file. Digests are computed beside writing and reading, by other threads, and a block is checked
before anything of it is used, whichever rows of it are wanted.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from .. import provenance
from .manifest import Block, Manifest, StoredTensor, checked, digest
from .storage import COMPLETE, CheckpointStore

TOGETHER = 2  # blocks that are read, and checked, at the same time

Mend = Callable[[str, Block, Tensor], None]


class Writer(StorageWriter):
    """Writes the blocks of this process to a file, and the manifest of all processes' once they are there.

    Args:
        rank: of this process, which names its file.
        initial: see `Manifest`.
    """

    def __init__(self, where: CheckpointStore, name: str, rank: int, initial: dict[str, int] | None):
        self.where, self.name, self.file, self.initial = where, name, f"process-{rank}.bin", initial

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results, begin = [], 0
        with self.where.create(self.name, self.file) as file, ThreadPoolExecutor(1) as beside:
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor) and item.tensor_data is not None
                content = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
                checksum = beside.submit(digest, content)
                file.write(content)
                chunk = item.tensor_data.chunk
                block = Block(
                    self.file, begin, content.nbytes, checksum.result(), tuple(chunk.offsets), tuple(chunk.sizes)
                )
                results.append(WriteResult(item.index, content.nbytes, block))
                begin += content.nbytes
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        blocks: dict[str, list[Block]] = {}
        for result in (each for of_process in results for each in of_process):
            blocks.setdefault(result.index.fqn, []).append(result.storage_data)
        tensors = {}
        for name, each in metadata.state_dict_metadata.items():
            assert isinstance(each, TensorStorageMetadata)
            dtype = str(each.properties.dtype).removeprefix("torch.")
            tensors[name] = StoredTensor(dtype, tuple(each.size), blocks[name])
        self.where.put(self.name, COMPLETE, Manifest(provenance.about(), self.initial, tensors).written())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Reader(StorageReader):
    """Reads and checks blocks.

    Args:
        metadata: of `metadata_of`.
        mend: is given each block with the name of its tensor, to refuse it or to change it in place.
    """

    def __init__(self, where: CheckpointStore, name: str, metadata: Metadata, mend: Mend):
        self.where, self.name, self.metadata, self.mend = where, name, metadata, mend

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        def read(item: ReadItem) -> None:
            tensor = self._tensor(item)
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                tensor = tensor.narrow(dim, offset, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(tensor)
            planner.commit_tensor(item, target)

        with ThreadPoolExecutor(TOGETHER) as pool:
            for _ in pool.map(read, plan.items):  # raises what one of them raises, and cancels the rest
                pass
        return _done(None)

    def _tensor(self, item: ReadItem) -> Tensor:
        """Return the block that a part is wanted of."""
        name, block = item.storage_index.fqn, self.metadata.storage_data[item.storage_index]
        content = self.where.read(self.name, block.file, block.begin, block.length)
        checked(content, name, block)
        dtype = self.metadata.state_dict_metadata[name].properties.dtype  # type: ignore[union-attr]
        if not content:
            return torch.empty(block.sizes, dtype=dtype)
        writable = content if isinstance(content, bytearray) else bytearray(content)
        tensor = torch.frombuffer(writable, dtype=dtype).view(block.sizes)
        self.mend(name, block, tensor)
        return tensor

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def metadata_of(manifest: Manifest) -> Metadata:
    """Return the manifest as torch.distributed.checkpoint takes it."""
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    blocks: dict[MetadataIndex, Block] = {}
    for name, each in manifest.tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(block.offsets), torch.Size(block.sizes)) for block in each.blocks]
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype_of(each.dtype)), torch.Size(each.size), chunks)
        blocks |= {MetadataIndex(name, block.offsets): block for block in each.blocks}
    return Metadata(tensors, storage_data=blocks)


def dtype_of(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return dtype


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
