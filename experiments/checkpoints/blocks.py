"""Planners of torch.distributed.checkpoint: tensors are written in blocks of rows and read by any range of rows."""

import io
from dataclasses import replace

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

BLOCK_BYTES = 2**23  # written or read at a time


class BlockSavePlanner(dcp.DefaultSavePlanner):
    """A planner that divides a process's tensors into blocks, so that a reader needs no memory for whole shards."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.begins = {item.index.fqn: item.tensor_data.chunk.offsets for item in plan.items if item.tensor_data}
        self.plan = replace(plan, items=[block for item in plan.items for block in _blocks(item)])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.tensor_data is None or not write_item.tensor_data.size:
            return super().resolve_data(write_item)
        tensor = self.state_dict[write_item.index.fqn]
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        chunk = write_item.tensor_data.chunk
        block: Tensor = local.detach().narrow(
            0, chunk.offsets[0] - self.begins[write_item.index.fqn][0], chunk.sizes[0]
        )
        return block


def _blocks(item: WriteItem) -> list[WriteItem]:
    data = item.tensor_data
    if data is None or not data.size or not data.chunk.sizes[0]:
        return [item]
    (start, *offsets), (length, *sizes) = data.chunk.offsets, data.chunk.sizes
    row_bytes = torch.Size(sizes).numel() * data.properties.dtype.itemsize
    step = max(1, BLOCK_BYTES // row_bytes)
    blocks = []
    for a in range(start, start + length, step):
        chunk = ChunkStorageMetadata(
            offsets=torch.Size([a, *offsets]), sizes=torch.Size([min(step, start + length - a), *sizes])
        )
        index = MetadataIndex(item.index.fqn, chunk.offsets)
        blocks.append(WriteItem(index, WriteItemType.SHARD, tensor_data=replace(data, chunk=chunk)))
    return blocks


class RowRangePlanner(dcp.DefaultLoadPlanner):
    """A planner that reads some rows of one tensor."""

    def __init__(self, name: str, start: int, rows: Tensor):
        super().__init__()
        self.name, self.start, self.rows = name, start, rows

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        chunk = ChunkStorageMetadata(
            offsets=torch.Size([self.start, *[0] * (self.rows.dim() - 1)]), sizes=self.rows.shape
        )
        stored = self.metadata.state_dict_metadata[self.name]
        return LoadPlan(create_read_items_for_chunk_list(self.name, stored, [chunk]))  # type: ignore[arg-type]

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.rows

    def transform_tensor(self, read_item: ReadItem, tensor: Tensor) -> Tensor:
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dim, offset, length)
        return tensor
