"""Pickles of strangers, read without running anything that they name.

A pickle is a program. Here its instructions are looked at before any is run, and of all functions and classes that it
may name, only those by which numpy arrays and byte strings are written are answered, by stand-ins of our own: numpy
itself never sees what is not checked.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

KINDS = "biuf"  # of numpy's dtypes: no objects, no text, no structures
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
BUFFERS = ("numpy.core.numeric", "numpy._core.numeric")
# Instructions that call what extensions or other programs have registered, or build classes.
REFUSED = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
REFUSED |= {"NEXT_BUFFER", "READONLY_BUFFER"}  # of buffers outside of the pickle

OPERATIONS = {each.code: each for each in pickletools.opcodes}


def loads(raw: bytes, name: str) -> Any:
    """What a pickle holds: lists, tuples, dicts, numbers, booleans, text, byte strings and numpy arrays of numbers.
    Byte strings of Python 2 come as bytes.

    Args:
        name: of the file, for errors.

    Raises:
        ValueError: it holds or names anything else, or is damaged; nothing of it has been run.
    """
    try:
        _inspect(raw)
        return _plain(_Reader(raw).load(), {})
    except _RefusedError as error:
        raise ValueError(
            f"{name}: refused, {error}; only numbers, text, bytes, and arrays and lists of them are read"
        ) from None
    # What a damaged pickle is known to raise.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{name}: no pickle, or a damaged one ({error})") from None
    except (OverflowError, MemoryError, RecursionError, UnicodeError) as error:
        raise ValueError(f"{name}: no pickle, or a damaged one ({type(error).__name__})") from None


class _RefusedError(Exception):
    pass


def _inspect(raw: bytes) -> None:
    """Raises for instructions that no list of images needs. A memo's number is room that is reserved."""
    for operation, argument in _operations(raw):
        if operation in REFUSED:
            raise _RefusedError(f"it has the instruction {operation}")
        if operation == "GLOBAL":
            _answer(*str(argument).split(" ", 1))
        if "PUT" in operation and argument > len(raw):
            raise _RefusedError(f"it asks for room for {argument:,} objects")


def _operations(raw: bytes) -> Iterator[tuple[str, Any]]:
    """Names of the instructions, and their arguments. `pickletools.genops` cannot read Python 2's text of bytes."""
    stream = io.BytesIO(raw)
    while True:
        code = stream.read(1)
        found = OPERATIONS.get(code.decode("latin1"))
        if found is None:
            raise pickle.UnpicklingError("it ends early" if not code else f"{code!r} at byte {stream.tell() - 1}")
        if found.name == "STRING":
            yield found.name, stream.readline()
        else:
            yield found.name, found.arg.reader(stream) if found.arg is not None else None
        if found.name == "STOP":
            return


class _Reader(pickle._Unpickler):
    """The one in Python: the one in C corrupts memory on some damaged pickles."""

    def __init__(self, raw: bytes):
        super().__init__(io.BytesIO(raw), encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        return _answer(module, name)


def _answer(module: str, name: str) -> Any:
    """A stand-in for a global; a new one each time, so that no pickle changes what another gets."""
    if module in NUMPY and name == "_reconstruct":
        return _function(lambda *_: _Array())
    if module in NUMPY and name == "scalar":
        return _function(_scalar)
    if module in BUFFERS and name == "_frombuffer":
        return _function(_from_buffer)
    if (module, name) == ("numpy", "ndarray"):
        return _Name()
    if (module, name) == ("numpy", "dtype"):
        return _function(_Dtype)
    if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes at protocol 2
        return _function(_latin1)
    if module in ("builtins", "__builtin__") and name in ("bytes", "bytearray"):
        return _function(_bytes)
    if module in ("builtins", "__builtin__") and name == "tuple":
        return _function(_tuple)
    if (module, name) == ("collections", "OrderedDict"):
        return _function(_dict)
    raise _RefusedError(f"it names {module}.{name}")


class _Name:
    """Something that is named and never called."""

    __slots__ = ()


def _function(call: Callable[..., Any]) -> Any:
    """A callable that has no attribute to be set by a pickle."""

    class Function:
        __slots__ = ()

        def __call__(self, *arguments: Any) -> Any:
            return call(*arguments)

    return Function()


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("it encodes something in another way than bytes are written")
    return text.encode("latin1")


def _bytes(value: Any = b"", encoding: Any = "latin1") -> bytes:
    if isinstance(value, str):
        return _latin1(value, encoding if encoding != b"latin-1" and encoding != "latin-1" else "latin1")
    if not isinstance(value, bytes | bytearray | list):
        raise _RefusedError("it makes bytes of something else")
    return bytes(value)


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list):
        raise _RefusedError("it makes a tuple of something else")
    return tuple(items)


def _dict(*items: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*items)


class _Dtype:
    """As numpy writes it: a kind and a size, and then the order of bytes as a state."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code.lstrip("<>|=")[:1] not in KINDS or not code.lstrip("<>|=")[1:].isdigit():
            raise _RefusedError(f"it holds an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|"):
            raise _RefusedError(f"it holds an array in the byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """As numpy writes it: nothing, and then all as a state."""

    array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray | str) or order not in ("C", "F"):
        raise _RefusedError("it holds an array of something else than numbers")
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    array = np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.array = _array(raw, dtype, shape, order)
    return made


def _scalar(dtype: Any, raw: Any) -> Any:
    made = _Array()
    made.array = _array(raw, dtype, (), "C")[()]
    return made


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """With arrays in place of their stand-ins. Raises for a stand-in that was left half made."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        if value.array is None:
            raise _RefusedError("it holds an array without content")
        return value.array
    if isinstance(value, list | dict):
        seen[id(value)] = value  # a list may hold itself
        for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _plain(each, seen)
        return value
    if isinstance(value, tuple):
        return tuple(_plain(each, seen) for each in value)
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
        return value
    raise _RefusedError(f"it holds an object of {type(value).__name__}")
