"""Untrusted pickles: harmless ones are read like by pickle, others are refused and run nothing."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from data.formats.pickles import loads

IMAGES = [b"\xff\xd8\x00jpeg", b"", b"\x80\xff" * 9]
HARMLESS = (
    (IMAGES, [True, False, True]),
    ([np.frombuffer(image, np.uint8) for image in IMAGES], np.array([True, False])),
    ([bytearray(image) for image in IMAGES], [np.bool_(True), np.int64(0)]),
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((0, 3)),
        np.ones(2, ">i4"),
        np.float32(3),
        1.5,
        None,
        "text",
        10**30,
    ],
    OrderedDict(a={"b": (1, [2])}),
    [],
)


def alike(a, b) -> bool:
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype.newbyteorder("=") and a.shape == b.shape and np.array_equal(a, b)
    return bytes(a) == bytes(b) if isinstance(b, bytearray) else a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("number", range(len(HARMLESS)))
def test_harmless_pickles_are_read(number, protocol):
    assert alike(loads(pickle.dumps(HARMLESS[number], protocol), "f"), HARMLESS[number])


def test_a_pickle_of_python_2():
    """Pickles of `(["\\xff\\xd8", array], [True, False])` by Python 2.7 and numpy 1.16, at protocols 2 and 0."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x03\x85"
        b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x03\xff\xd8\x07tb"
    )
    images, same = loads(b"\x80\x02]q\x00(U\x02\xff\xd8q\x01" + array + b"e]q\x07(\x88\x89e\x86q\x08.", "f")
    assert images[0] == b"\xff\xd8" and images[1].tobytes() == b"\xff\xd8\x07" and same == [True, False]
    assert loads(b"(lp0\nS'\\xff\\xd8'\np1\naI01\na.", "f") == [b"\xff\xd8", True]


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {}"),
        (eval, "open({!r}, 'w')"),
        (exec, "open({!r}, 'w')"),
        (open, "{}", "w"),
        (getattr, "{}", "join"),
        (map, os.system, ["touch {}"]),
        (np.load, "{}"),
    ],
    ids=lambda call: call[0].__name__,
)
def test_malicious_pickles_are_refused_and_run_nothing(call, protocol, tmp_path):
    function, *arguments = call
    trap = tmp_path / "trap"
    arguments = [word.format(str(trap)) if isinstance(word, str) else word for word in arguments]
    for place in (lambda x: x, lambda x: ([b"", x], [True]), lambda x: np.array([x, 1], object)):
        with pytest.raises(ValueError, match=r"lfw\.bin is refused, since it (names|contains an array of)"):
            loads(pickle.dumps(place(Calls(function, *arguments)), protocol), "lfw.bin")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x80\x04\x8c\x08builtins\x8c\x0abytes.join\x93.", r"names builtins\.bytes\.join"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "names numpy"),
        (b"\x80\x04\x8c\x0cdata.pickles\x8c\x05loads\x93.", "names data"),
        (b"cos\nsystem\n(S'true'\ntR.", r"names os\.system"),
        (b"(S'true'\nios\nsystem\n.", "instruction INST"),
        (b"(cnumpy\nndarray\nS'true'\no.", "instruction OBJ"),
        (b"cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
        (b"Pname\n.", "instruction PERSID"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"\x80\x04]r\xff\xff\xff\x7f.", "memory for 2,147,483,647"),
        (b"\x80\x02cnumpy\nndarray\n.", "contains an object"),
        # A tuple nested too deeply to be hashed, in a dict or a set.
        (b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s.", "a dict with other keys than text"),
        # Integers chosen so that all of them collide.
        (
            b"\x80\x04}("
            + b"".join(b"\x8a\x09%bN" % (k * (2**61 - 1)).to_bytes(9, "little") for k in range(9))
            + b"u.",
            "a dict with other keys than text",
        ),
        (b"\x80\x04(cnumpy\nndarray\nK\x01d.", "a dict with other keys"),
        (b"\x80\x04\x8f.", "instruction EMPTY_SET"),
        (b"\x80\x04)" + b"\x85" * 200_000 + b".", "not a pickle"),
        # 150 kB of text, converted to bytes repeatedly.
        (
            b"\x80\x02]X"
            + (150_000).to_bytes(4, "little")
            + b"a" * 150_000
            + b"q\x000"
            + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86Ra" * 50
            + b".",
            "many times larger than the file",
        ),
        (b"c__builtin__\nbytearray\n(I1000000000000\ntR.", "converts other values to bytes"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zliptR.", "encodes"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "array without content"),
        (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "array of 'O8'"),
        (b"", "not a pickle"),
        (b"\xff\xd8 a picture", "not a pickle"),
        (b"\x80\x04]", "not a pickle"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "not a pickle|contains an object"),
    ],
)
def test_other_instructions_are_refused(raw, words):
    with pytest.raises(ValueError, match=rf"^f is .*({words})"):
        loads(raw, "f")


def test_shared_objects_are_visited_once():
    """The pickle is a tuple of the same tuple twice, 60 levels deep."""
    content = loads(b"\x80\x04)" + b"2\x86" * 60 + b".", "f")
    assert content[0] is content[1]


def test_shapes_of_arrays_are_compared_with_their_bytes():
    raw = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    assert loads(raw, "f").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="f is not a pickle, or is damaged"):
        loads(raw.replace(b"K\x04\x85", b"K\x64\x85"), "f")


@pytest.mark.parametrize("place", ["code", "order"])
def test_a_refusal_does_not_print_nested_objects(place):
    """A list of the same list twice, 60 levels deep, replaces the kind or the byte order of a dtype."""
    nested = b"]q\x000" + b"".join(b"](h%ch%ceq%c0" % (n, n, n + 1) for n in range(60)) + b"h\x3c"
    dtype = {"code": b"%s\x89\x88\x87R", "order": b"\x8c\x02u1\x89\x88\x87R(K\x03%sNNNK\x01K\x01K\x00tb"}[place]
    with pytest.raises(ValueError, match=r"other values than numbers|unknown byte order") as error:
        loads(b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93" + dtype % nested + b".", "f")
    assert len(str(error.value)) < 200
