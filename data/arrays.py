"""Arrays in .npy files, read by memory mapping."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .files import check_file

KINDS = {"f": "floats", "iu": "integers"}
SHAPES = {(1,): "(N,)", (2,): "(N, D)", (1, 2): "(N,) or (N, L)"}


def mapped(option: str, path: str, kind: str, *ndims: int) -> NDArray[Any]:
    """Map the array of a .npy file.

    Args:
        option: name of the option with the path, for messages.
        path: path of the file.
        kind: "f" for floats, "iu" for integers.
        ndims: the numbers of dimensions that it may have.

    Raises:
        ValueError: there is no such file, or its array has another dtype or number of dimensions.
    """
    try:
        check_file(path, ".npy file")
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise ValueError(f"{option}={path} cannot be read as a .npy file ({error}); numpy.save writes one") from None
    if array.dtype.kind not in kind or array.ndim not in ndims:
        raise ValueError(
            f"{option}={path} must be an array {SHAPES[ndims]} of {KINDS[kind]}, and it is {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    return array.view(np.ndarray)  # plain arrays are indexed faster


def floats(array: NDArray[Any], indices: NDArray[np.int64] | slice, path: str) -> NDArray[np.float32]:
    """Return a copy of rows of an array of floats, as float32. Raise ValueError for NaN or Inf, with the record."""
    with np.errstate(over="ignore"):  # float64 may exceed float32, which becomes Inf
        rows = np.array(array[indices], dtype=np.float32)
    if not np.isfinite(rows).all():
        place = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        record = indices.start + place if isinstance(indices, slice) else int(indices[place])
        raise ValueError(f"{path}: record {record:,}, counted from 0, has NaN or Inf, or a number beyond float32")
    return rows


def write_header(file: IO[bytes], dtype: Any, shape: tuple[int, ...]) -> None:
    """Begin a .npy file, which the bytes of the array must follow.

    An array that is too large for memory is so written to a file, because a full disk kills the process that writes to
    mapped memory.
    """
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )


def write_array(path: Path, dtype: Any, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]) -> None:
    """Write a new .npy file from blocks of its first dimension. The file appears when it is complete."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("wb") as file:
            write_header(file, dtype, shape)
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype=dtype).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def beside(path: str, ending: str) -> str:
    """Return the path of a file that belongs to NAME.npy: NAME with another ending."""
    return str(Path(path).with_suffix(ending))
