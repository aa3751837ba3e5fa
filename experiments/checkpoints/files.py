"""Storage of torch.distributed.checkpoint in files of blocks, each block with its digest.

A process writes one file. Other threads compute digests during writing and reading. A complete block is checked before
any of its rows is used.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
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
from .manifest import Block, InitialRows, Manifest, StoredTensor, check_block, digest
from .storage import COMPLETE, CheckpointStore

READ_THREADS = 2  # each reads and checks a block

Repair = Callable[[str, Block, Tensor], None]


class Writer(StorageWriter):
    """A writer of the blocks of this process to a file, and of the manifest once all processes have written.

    Args:
        store: store that holds the checkpoint.
        name: name of the checkpoint.
        rank: rank of this process, which is part of its file's name.
        initial: see `Manifest`.
    """

    def __init__(self, store: CheckpointStore, name: str, rank: int, initial: InitialRows | None):
        self.store, self.name, self.file, self.initial = store, name, f"process-{rank}.bin", initial

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results, begin = [], 0
        with self.store.create(self.name, self.file) as file, ThreadPoolExecutor(1) as other_thread:
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor) and item.tensor_data is not None
                content = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
                checksum = other_thread.submit(digest, content)
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
        for result in chain(*results):
            blocks.setdefault(result.index.fqn, []).append(result.storage_data)
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            tensors[name] = StoredTensor(dtype, tuple(tensor.size), blocks[name])
        self.store.put(self.name, COMPLETE, Manifest(provenance.about(), self.initial, tensors).to_bytes())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Reader(StorageReader):
    """A reader that checks blocks.

    Args:
        metadata: result of `metadata_of`.
        repair: called with each block and its tensor's name, to refuse the block or change it in place.
    """

    def __init__(self, store: CheckpointStore, name: str, metadata: Metadata, repair: Repair):
        self.store, self.name, self.metadata, self.repair = store, name, metadata, repair

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

        with ThreadPoolExecutor(READ_THREADS) as pool:
            for _ in pool.map(read, plan.items):  # raise the first error and cancel the rest
                pass
        return _done(None)

    def _tensor(self, item: ReadItem) -> Tensor:
        """Read and check the block that holds the requested rows."""
        name, block = item.storage_index.fqn, self.metadata.storage_data[item.storage_index]
        content = self.store.read(self.name, block.file, block.begin, block.length)
        check_block(content, name, block)
        dtype = self.metadata.state_dict_metadata[name].properties.dtype  # type: ignore[union-attr]
        if not content:
            return torch.empty(block.sizes, dtype=dtype)
        writable = content if isinstance(content, bytearray) else bytearray(content)
        tensor = torch.frombuffer(writable, dtype=dtype).view(block.sizes)
        self.repair(name, block, tensor)
        return tensor

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def metadata_of(manifest: Manifest) -> Metadata:
    """Return the manifest as metadata of torch.distributed.checkpoint."""
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    blocks: dict[MetadataIndex, Block] = {}
    for name, tensor in manifest.tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(block.offsets), torch.Size(block.sizes)) for block in tensor.blocks]
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype_of(tensor.dtype)), torch.Size(tensor.size), chunks)
        blocks |= {MetadataIndex(name, block.offsets): block for block in tensor.blocks}
    return Metadata(tensors, storage_data=blocks)


def dtype_of(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is not a dtype")
    return dtype


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
