"""The manifest of a checkpoint: its tensors, the position of each of their blocks, and the digest of each block.

It is JSON, is written last, and contains its own digest. Importing this module does not import torch, so that
`experiments.verify` needs none.

    {"format": 3, "sha256": digest of the content, "content": {
        "version": of this project, "commit": of its repository, or null,
        "initial": the fields of `InitialRows`; null for a head that stores no rows,
        "tensors": {name: {"dtype": ..., "size": [...], "blocks": [
            [file, begin, length, digest, offsets in the tensor, sizes], ...]}}}}

The blocks of a file follow each other without gaps, so their digests cover the file.

Formats: 3 since version 0.3 (modules and saved state were renamed), 2 in version 0.2. Version 0.1 wrote pickles.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from .storage import COMPLETE, OLD_COMPLETE, CheckpointStore

FORMAT = 3
FILE = re.compile(r"process-\d+\.bin")  # a name and never a path: a reader stays in its folder


class DamageError(Exception):
    """A checkpoint does not hold what was written. The message is a clause about "it", the checkpoint."""


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
    """A tensor in a checkpoint."""

    dtype: str
    size: tuple[int, ...]
    blocks: list[Block]


@dataclass(frozen=True)
class InitialRows:
    """Source of the initial rows of a head, for rows that were never written.

    Args:
        seed, embedding_size: as of the head.
        bias: initial value of a column after those of the embedding.
        rows_per_class: rows of a line.
        of_classes: whether the rows stand for the classes; False if classes share rows.
        scattered: whether the rows are in the order of `heads.rows.layout.Layout`, not in that of the class ids.
    """

    seed: int
    embedding_size: int
    bias: float = 0.0
    rows_per_class: int = 1
    of_classes: bool = True
    scattered: bool = False


KINDS = {
    "seed": int,
    "embedding_size": int,
    "bias": float,
    "rows_per_class": int,
    "of_classes": bool,
    "scattered": bool,
}


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint.

    Args:
        program: version and commit of the project that wrote the checkpoint.
        initial: source of the initial rows; None for a head that stores none.
        tensors: tensors by name.
    """

    program: dict[str, str | None]
    initial: InitialRows | None
    tensors: dict[str, StoredTensor]

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        content = {
            **self.program,
            "initial": None if self.initial is None else asdict(self.initial),
            "tensors": {
                name: {
                    "dtype": tensor.dtype,
                    "size": tensor.size,
                    "blocks": [[*vars(block).values()] for block in tensor.blocks],
                }
                for name, tensor in self.tensors.items()
            },
        }
        text = _canonical(content)
        return f'{{"format": {FORMAT}, "sha256": "{digest(text.encode())}", "content": {text}}}\n'.encode()

    def by_file(self) -> dict[str, list[tuple[str, Block]]]:
        """Return (tensor name, block) for all blocks of each file, in their order in the file."""
        blocks: dict[str, list[tuple[str, Block]]] = {}
        for name, tensor in self.tensors.items():
            for block in tensor.blocks:
                blocks.setdefault(block.file, []).append((name, block))
        return {file: sorted(blocks[file], key=lambda pair: pair[1].begin) for file in sorted(blocks)}


def read_manifest(store: CheckpointStore, name: str) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        DamageError: it is missing or damaged, or has another format.
    """
    if COMPLETE not in (files := store.sizes(name)):
        if OLD_COMPLETE in files:
            raise DamageError(
                "it was written by version 0.1, whose checkpoints can hold programs and are no longer read; finish or "
                "export it with that version, or train (or import) again with this one"
            )
        raise DamageError(f"it has no {COMPLETE}, so it is not a checkpoint or was never completed")
    try:
        parsed = json.loads(bytes(store.read(name, COMPLETE)))
        content = parsed["content"]
        if (written_format := parsed["format"]) != FORMAT:
            version = str(content["version"])[:20]
            raise DamageError(
                f"it was written by version {version} in format {written_format}, and this version reads format "
                f"{FORMAT}; finish or export it with version {version}, or train (or import) again with this one"
            )
        if digest(_canonical(content).encode()) != parsed["sha256"]:
            raise DamageError(f"its {COMPLETE} is damaged: its content does not have the digest that was written")
        tensors = {str(name): _tensor(name, tensor) for name, tensor in content["tensors"].items()}
        initial = content["initial"]
        if initial is not None:
            # Those with a default are missing in checkpoints of an earlier commit.
            initial = InitialRows(**{name: kind(initial[name]) for name, kind in KINDS.items() if name in initial})
        return Manifest({name: content[name] for name in ("version", "commit")}, initial, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamageError(f"its {COMPLETE} is damaged ({type(error).__name__}: {error})") from error


def _tensor(name: str, parsed: Any) -> StoredTensor:
    size = _sizes(parsed["size"])
    blocks = []
    for file, begin, length, checksum, offsets, sizes in parsed["blocks"]:
        _sizes([begin, length])
        blocks.append(Block(file, begin, length, str(checksum), _sizes(offsets), _sizes(sizes)))
    for block in blocks:
        if not isinstance(block.file, str) or not FILE.fullmatch(block.file):
            raise ValueError(f"a block of {name} is in {block.file!r}")
    if sum(prod(block.sizes) for block in blocks) != prod(size):
        raise ValueError(f"the blocks of {name} do not make up the tensor")
    return StoredTensor(str(parsed["dtype"]), size, blocks)


def _sizes(parsed: Any) -> tuple[int, ...]:
    if not all(type(number) is int and number >= 0 for number in parsed):
        raise ValueError(f"{parsed} are not sizes")
    return tuple(parsed)


def check_block(content: bytes | bytearray, tensor: str, block: Block) -> None:
    """Raise DamageError unless these are the bytes that were written."""
    if len(content) < block.length:
        raise DamageError(f"its file {block.file} is damaged: it ends early, within {tensor}")
    if digest(content) != block.digest:
        raise DamageError(
            f"its file {block.file} is damaged: it does not hold the bytes that were written, {_rows(tensor, block)}"
        )


def wrong_sizes(manifest: Manifest, sizes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield each file that is missing or cut short, and a clause that says so."""
    for file, blocks in manifest.by_file().items():
        end = max(block.begin + block.length for _, block in blocks)
        if (size := sizes.get(file, -1)) < 0:
            yield file, f"its file {file} of {end:,} bytes is missing"
        elif size < end:
            yield file, f"its file {file} is damaged: it has {size:,} of {end:,} bytes"


def digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _rows(tensor: str, block: Block) -> str:
    if not block.offsets:
        return f"in {tensor}"
    return f"in rows {block.offsets[0]:,} to {block.offsets[0] + block.sizes[0] - 1:,} of {tensor}"


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
