"""Pickles of strangers, read without running anything that they name.

A pickle is a program. Here its instructions are looked at before any is run, and of all functions and classes that it
may name, only those by which numpy arrays and byte strings are written are answered, by stand-ins of our own: numpy
itself never sees what is not checked.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

KINDS = "biuf"  # of numpy's dtypes: no objects, no text, no structures
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
BUFFERS = ("numpy.core.numeric", "numpy._core.numeric")
BUILTINS = ("builtins", "__builtin__")
# Instructions that call what extensions or other programs have registered, or build classes.
REFUSED = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
REFUSED |= {"NEXT_BUFFER", "READONLY_BUFFER"}  # of buffers outside of the pickle
REFUSED |= {"EMPTY_SET", "ADDITEMS", "FROZENSET"}
OPERATIONS = {each.code: each for each in pickletools.opcodes}
SPARE = 2**20  # bytes that stand-ins may make besides four times those of the pickle


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
    except (OverflowError, MemoryError, RecursionError, UnicodeError, AssertionError) as error:
        raise ValueError(f"{name}: no pickle, or a damaged one ({type(error).__name__})") from None


class _RefusedError(Exception):
    pass


def _inspect(raw: bytes) -> None:
    """Raises for instructions that no list of images needs. A memo's number is room that is reserved."""
    names = _StandIns(0)
    for operation, argument in _operations(raw):
        if operation in REFUSED:
            raise _RefusedError(f"it has the instruction {operation}")
        if operation == "GLOBAL":
            names.answer(*str(argument).split(" ", 1))
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
        self.find_class = _StandIns(4 * len(raw) + SPARE).answer  # type: ignore[method-assign]

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
    """Keys are text: to hash what is nested deeply would end the process, and whole numbers can be chosen so that
    each collides with all before, which takes hours."""
    if not isinstance(target, dict) or not all(isinstance(key, str | bytes) for key in keys):
        raise _RefusedError("it holds a dict with other keys than text")
    target.update(zip(keys, values, strict=True))
    return target


LONGEST_CODE = 20  # of a kind of numbers
MOST_AXES = 64


class _StandIns:
    """What names in a pickle stand for; made anew for each, so that none changes what another gets.

    Args:
        budget: bytes that they may make, so that no small pickle fills the memory.
    """

    def __init__(self, budget: int):
        self.budget = budget

    def answer(self, module: str, name: str) -> Any:
        """Raises for a name that no list of images needs."""
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
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes at protocol 2
            return _function(self.latin1)
        if module in BUILTINS and name in ("bytes", "bytearray"):
            return _function(self.bytes)
        if module in BUILTINS and name == "tuple":
            return _function(self.tuple)
        if (module, name) == ("collections", "OrderedDict"):
            return _function(self.dict)
        raise _RefusedError(f"it names {module}.{name}")

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise _RefusedError("it becomes many times as large as it is")

    def latin1(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1", b"latin-1"):
            raise _RefusedError("it encodes something in another way than bytes are written")
        self.spend(len(text))
        return text.encode("latin1")

    def bytes(self, value: Any = b"", encoding: Any = "latin1") -> Any:
        if isinstance(value, str):
            return self.latin1(value, encoding)
        if not isinstance(value, bytes | bytearray | list):
            raise _RefusedError("it makes bytes of something else")
        self.spend(len(value))
        return bytes(value)

    def tuple(self, items: Any = ()) -> Any:
        if not isinstance(items, tuple | list):
            raise _RefusedError("it makes a tuple of something else")
        self.spend(8 * len(items))
        return tuple(items)

    def dict(self, items: Any = ()) -> Any:
        pairs = [*items.items()] if isinstance(items, dict) else [*items]
        self.spend(32 * len(pairs))
        return _fill({}, [key for key, _ in pairs], [value for _, value in pairs])

    def array(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = ()) -> Any:
        """
        Args:
            axes: of order "K": where the axes of what is stored in order "C" go.
        """
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray | str) or not isinstance(order, str):
            raise _RefusedError("it holds an array of something else than numbers")
        if order not in ("C", "F", "K") or not isinstance(axes, tuple | list | None) or len(axes or ()) > MOST_AXES:
            raise _RefusedError("it holds an array in an unknown order")
        self.spend(2 * len(raw))
        raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        array = array.transpose(axes) if order == "K" else array
        return array.astype(array.dtype.newbyteorder("="), copy=False)


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


class _Dtype:
    """As numpy writes it: a kind and a size, and then the order of bytes as a state."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        # Only what is short is told: a nested object may take for ever to be written.
        if not isinstance(code, str) or len(code) > LONGEST_CODE:
            raise _RefusedError("it holds an array of something else than numbers")
        if code.lstrip("<>|=")[:1] not in KINDS or not code.lstrip("<>|=")[1:].isdigit():
            raise _RefusedError(f"it holds an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|"):
            raise _RefusedError("it holds an array in an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """As numpy writes it: nothing, and then all as a state; or all at once."""

    def __init__(self, made_by: _StandIns, array: Any = None):
        self.made_by, self.array = made_by, array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = self.made_by.array(raw, dtype, shape, "F" if fortran else "C")


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
        seen[id(value)] = made = tuple([_plain(each, seen) for each in value])
        return made
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
        return value
    raise _RefusedError(f"it holds an object of {type(value).__name__}")
