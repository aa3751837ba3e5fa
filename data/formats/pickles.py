"""Untrusted pickles, read without running anything that they name.

A pickle is a program. This module inspects its instructions before any of them runs. Of the functions and classes that
it names, only those that numpy arrays and byte strings need are resolved, to stand-ins defined here. numpy itself gets
only checked values.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

KINDS = "biuf"  # kinds of numpy's numeric dtypes: no objects, no text, no structures
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
BUFFERS = ("numpy.core.numeric", "numpy._core.numeric")
BUILTINS = ("builtins", "__builtin__")
# Instructions that call functions registered by extensions or other programs, or that build classes.
REFUSED = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
REFUSED |= {"NEXT_BUFFER", "READONLY_BUFFER"}  # buffers outside the pickle
REFUSED |= {"EMPTY_SET", "ADDITEMS", "FROZENSET"}
OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
SPARE = 2**20  # bytes that stand-ins may allocate in addition to four times the size of the pickle


def loads(raw: bytes, name: str) -> Any:
    """Return the content of a pickle of lists, tuples, dicts, numbers, booleans, text, bytes and numeric arrays.

    Byte strings of Python 2 become bytes.

    Args:
        raw: the pickle.
        name: name of the file, for error messages.

    Raises:
        ValueError: the pickle contains or names anything else, or is damaged; nothing of it was run.
    """
    try:
        _inspect(raw)
        return _plain(_Reader(raw).load(), {})
    except _RefusedError as error:
        raise ValueError(
            f"{name} is refused, since {error}; only numbers, text, bytes, and arrays and lists of them are read"
        ) from None
    # Errors that damaged pickles are known to raise.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{name} is not a pickle, or is damaged ({error})") from None
    except (OverflowError, MemoryError, RecursionError, UnicodeError, AssertionError) as error:
        raise ValueError(f"{name} is not a pickle, or is damaged ({type(error).__name__})") from None


class _RefusedError(Exception):
    pass


def _inspect(raw: bytes) -> None:
    """Raise for instructions that no list of images needs. A memo's number is refused if it reserves much memory."""
    stand_ins = _StandIns(0)
    for operation, argument in _operations(raw):
        if operation in REFUSED:
            raise _RefusedError(f"it has the instruction {operation}")
        if operation == "GLOBAL":
            stand_ins.resolve(*str(argument).split(" ", 1))
        if "PUT" in operation and argument > len(raw):
            raise _RefusedError(f"it requests memory for {argument:,} objects")


def _operations(raw: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the instructions with their arguments. `pickletools.genops` cannot read byte strings of Python 2."""
    stream = io.BytesIO(raw)
    while True:
        code = stream.read(1)
        operation = OPERATIONS.get(code.decode("latin1"))
        if operation is None:
            raise pickle.UnpicklingError("it ends early" if not code else f"{code!r} at byte {stream.tell() - 1}")
        if operation.name == "STRING":
            yield operation.name, stream.readline()
        else:
            yield operation.name, operation.arg.reader(stream) if operation.arg is not None else None
        if operation.name == "STOP":
            return


class _Reader(pickle._Unpickler):
    """The Python unpickler; the one in C corrupts memory on some damaged pickles."""

    def __init__(self, raw: bytes):
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self.find_class = _StandIns(4 * len(raw) + SPARE).resolve  # type: ignore[method-assign]

    def _set_items(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        _fill(self.stack[-1], items[0::2], items[1::2])  # type: ignore[attr-defined]

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        _fill(self.stack[-1], [key], [value])  # type: ignore[attr-defined]

    def _dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append(_fill({}, items[0::2], items[1::2]))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.SETITEMS[0]: _set_items,
        pickle.SETITEM[0]: _set_item,
        pickle.DICT[0]: _dict,
    }


def _fill(target: Any, keys: Any, values: Any) -> Any:
    """Add items with text keys to a dict.

    Other keys are refused: hashing a deeply nested key ends the process, and integers can be chosen so that all of them
    collide, which takes hours.
    """
    if not isinstance(target, dict) or not all(isinstance(key, str | bytes) for key in keys):
        raise _RefusedError("it contains a dict with other keys than text")
    target.update(zip(keys, values, strict=True))
    return target


LONGEST_CODE = 20  # characters of a dtype
MOST_AXES = 64


class _StandIns:
    """Stand-ins for the names in a pickle. Each pickle gets new ones, so that none can modify those of another.

    Args:
        budget: bytes that they may allocate, so that a small pickle cannot fill the memory.
    """

    def __init__(self, budget: int):
        self.budget = budget

    def resolve(self, module: str, name: str) -> Any:
        """Return the stand-in for a name. Raises for a name that no list of images needs."""
        if module in NUMPY and name == "_reconstruct":
            return _function(lambda *_: _Array(self))
        if module in NUMPY and name == "scalar":
            return _function(lambda dtype, raw: _Array(self, self.array(raw, dtype, (), "C")[()]))
        if module in BUFFERS and name == "_frombuffer":
            return _function(lambda *arguments: _Array(self, self.array(*arguments)))
        if (module, name) == ("numpy", "ndarray"):
            return _Name()
        if (module, name) == ("numpy", "dtype"):
            return _function(_Dtype)
        if (module, name) == ("_codecs", "encode"):  # Python 3 writes bytes like this at protocol 2
            return _function(self.latin1)
        if module in BUILTINS and name in ("bytes", "bytearray"):
            return _function(self.bytes)
        if module in BUILTINS and name == "tuple":
            return _function(self.tuple)
        if (module, name) == ("collections", "OrderedDict"):
            return _function(self.dict)
        raise _RefusedError(f"it names {module}.{name}")

    def spend(self, size: int) -> None:
        """Subtract an allocation from the budget."""
        self.budget -= size
        if self.budget < 0:
            raise _RefusedError("its content is many times larger than the file")

    def latin1(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1", b"latin-1"):
            raise _RefusedError("it encodes text in another way than bytes need")
        self.spend(len(text))
        return text.encode("latin1")

    def bytes(self, value: Any = b"", encoding: Any = "latin1") -> Any:
        if isinstance(value, str):
            return self.latin1(value, encoding)
        if not isinstance(value, bytes | bytearray | list):
            raise _RefusedError("it converts other values to bytes")
        self.spend(len(value))
        return bytes(value)

    def tuple(self, items: Any = ()) -> Any:
        if not isinstance(items, tuple | list):
            raise _RefusedError("it converts other values to a tuple")
        self.spend(8 * len(items))
        return tuple(items)

    def dict(self, items: Any = ()) -> Any:
        pairs = [*items.items()] if isinstance(items, dict) else [*items]
        self.spend(32 * len(pairs))
        return _fill({}, [key for key, _ in pairs], [value for _, value in pairs])

    def array(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = ()) -> Any:
        """Return an array.

        Args:
            raw: its bytes.
            dtype, shape: its type and shape.
            order: "C", "F", or "K" for a transposed array in order "C".
            axes: the transposition of order "K".
        """
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray | str) or not isinstance(order, str):
            raise _RefusedError("it contains an array of other values than numbers")
        if order not in ("C", "F", "K") or not isinstance(axes, tuple | list | None) or len(axes or ()) > MOST_AXES:
            raise _RefusedError("it contains an array in an unknown order")
        self.spend(2 * len(raw))
        raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        array = array.transpose(axes) if order == "K" else array
        return array.astype(array.dtype.newbyteorder("="), copy=False)


class _Name:
    """Stand-in for a name that is never called."""

    __slots__ = ()


def _function(call: Callable[..., Any]) -> Any:
    """Return a callable without attributes that a pickle could set."""

    class Function:
        __slots__ = ()

        def __call__(self, *arguments: Any) -> Any:
            return call(*arguments)

    return Function()


class _Dtype:
    """Stand-in for a dtype, pickled as kind and size, with the byte order as state."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        # Only short codes are shown: printing a nested object may take forever.
        if not isinstance(code, str) or len(code) > LONGEST_CODE:
            raise _RefusedError("it contains an array of other values than numbers")
        if code.lstrip("<>|=")[:1] not in KINDS or not code.lstrip("<>|=")[1:].isdigit():
            raise _RefusedError(f"it contains an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|"):
            raise _RefusedError("it contains an array in an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stand-in for an array, pickled as an empty array with everything as state, or completely."""

    def __init__(self, stand_ins: _StandIns, array: Any = None):
        self.stand_ins, self.array = stand_ins, array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = self.stand_ins.array(raw, dtype, shape, "F" if fortran else "C")


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """Replace stand-ins by their arrays. Raises for an incomplete stand-in."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        if value.array is None:
            raise _RefusedError("it contains an array without content")
        return value.array
    if isinstance(value, list | dict):
        seen[id(value)] = value  # a list may contain itself
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _plain(item, seen)
        return value
    if isinstance(value, tuple):
        seen[id(value)] = result = tuple([_plain(item, seen) for item in value])
        return result
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
        return value
    raise _RefusedError(f"it contains an object of type {type(value).__name__}")
