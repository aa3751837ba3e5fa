"""The manifest of a checkpoint: what it holds, where each block of it lies, and the digest of each block.

It is JSON, is written last, and carries a digest of itself. Imports no torch, so that `experiments.verify` needs none.

    {"format": 2, "sha256": digest of the content, "content": {
        "version": of this project, "commit": of its repository, or null,
        "initial": {"seed": ..., "embedding_size": ...}, or null without class centers: how rows of zeros are drawn,
        "tensors": {name: {"dtype": ..., "size": [...], "blocks": [
            [file, begin, length, digest, offsets in the tensor, sizes], ...]}}}}

The blocks of a file follow each other without gaps, so their digests cover the file.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from .storage import COMPLETE, OLD_COMPLETE, CheckpointStore

FORMAT = 2
FILE = re.compile(r"process-\d+\.bin")  # a name and never a path: a reader stays in its folder


class DamageError(Exception):
    """A checkpoint does not hold what was written; one sentence that says where."""


@dataclass(frozen=True)
class Block:
    """Some rows of a tensor, as bytes of a file."""

    file: str
    begin: int
    length: int
    digest: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a checkpoint holds it."""

    dtype: str
    size: tuple[int, ...]
    blocks: list[Block]


@dataclass(frozen=True)
class Manifest:
    """
    Args:
        program: version and commit of the project that wrote the checkpoint.
        initial: seed and embedding_size of the class centers; None without any.
    """

    program: dict[str, str | None]
    initial: dict[str, int] | None
    tensors: dict[str, StoredTensor]

    def written(self) -> bytes:
        """Return the content of the file."""
        content = {
            **self.program,
            "initial": self.initial,
            "tensors": {
                name: {
                    "dtype": each.dtype,
                    "size": each.size,
                    "blocks": [[*vars(block).values()] for block in each.blocks],
                }
                for name, each in self.tensors.items()
            },
        }
        text = _canonical(content)
        return f'{{"format": {FORMAT}, "sha256": "{digest(text.encode())}", "content": {text}}}\n'.encode()

    def by_file(self) -> dict[str, list[tuple[str, Block]]]:
        """Return the tensor's name and the block for all blocks of each file, in their order."""
        found: dict[str, list[tuple[str, Block]]] = {}
        for name, each in self.tensors.items():
            for block in each.blocks:
                found.setdefault(block.file, []).append((name, block))
        return {file: sorted(found[file], key=lambda pair: pair[1].begin) for file in sorted(found)}


def manifest_of(where: CheckpointStore, name: str) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        DamageError: it is missing, damaged, or of another format.
    """
    if COMPLETE not in (files := where.sizes(name)):
        if OLD_COMPLETE in files:
            raise DamageError(
                "it was written by version 0.1, whose checkpoints can hold programs and are not read any more; finish "
                "or export it with that version, or train (or import) again with this one"
            )
        raise DamageError(f"it has no {COMPLETE}, so it is no checkpoint or was never finished")
    try:
        told = json.loads(bytes(where.read(name, COMPLETE)))
        if (found := told["format"]) != FORMAT:
            raise DamageError(
                f"it is of format {found}, and this version reads format {FORMAT}; use the version that wrote it"
            )
        content = told["content"]
        if digest(_canonical(content).encode()) != told["sha256"]:
            raise DamageError(f"its {COMPLETE} is damaged: it does not have the digest that it was written with")
        tensors = {str(name): _stretches(name, each) for name, each in content["tensors"].items()}
        initial = content["initial"]
        if initial is not None:
            initial = {name: int(initial[name]) for name in ("seed", "embedding_size")}
        return Manifest({name: content[name] for name in ("version", "commit")}, initial, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamageError(f"its {COMPLETE} is damaged ({type(error).__name__}: {error})") from error


def _stretches(name: str, told: Any) -> StoredTensor:
    size = _numbers(told["size"])
    blocks = []
    for file, begin, length, checksum, offsets, sizes in told["blocks"]:
        _numbers([begin, length])
        blocks.append(Block(file, begin, length, str(checksum), _numbers(offsets), _numbers(sizes)))
    for block in blocks:
        if not isinstance(block.file, str) or not FILE.fullmatch(block.file):
            raise ValueError(f"a block of {name} is in {block.file!r}")
    if sum(prod(block.sizes) for block in blocks) != prod(size):
        raise ValueError(f"the blocks of {name} are not all of it")
    return StoredTensor(str(told["dtype"]), size, blocks)


def _numbers(told: Any) -> tuple[int, ...]:
    if not all(type(each) is int and each >= 0 for each in told):
        raise ValueError(f"{told} are no sizes")
    return tuple(told)


def checked(content: bytes | bytearray, tensor: str, block: Block) -> None:
    """Raise DamageError unless these are the bytes that were written."""
    if len(content) < block.length:
        raise DamageError(f"damaged: its file {block.file} ends early, within {tensor}")
    if digest(content) != block.digest:
        raise DamageError(
            f"damaged: its file {block.file} does not have the bytes that were written, {_rows(tensor, block)}"
        )


def wrong_sizes(manifest: Manifest, sizes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield each file that is missing or cut short, and a sentence that says so."""
    for file, blocks in manifest.by_file().items():
        end = max(block.begin + block.length for _, block in blocks)
        if (size := sizes.get(file, -1)) < end:
            found = "is missing" if size < 0 else f"has {size:,} bytes"
            yield file, f"damaged: its file {file} of {end:,} bytes {found}"


def digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _rows(tensor: str, block: Block) -> str:
    if not block.offsets:
        return f"in {tensor}"
    return f"in rows {block.offsets[0]:,} to {block.offsets[0] + block.sizes[0] - 1:,} of {tensor}"


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
