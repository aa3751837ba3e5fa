"""State is unchanged after a round trip through JSON."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch

from experiments.checkpoints.state import pack, unpack


@pytest.mark.parametrize(
    "state",
    [
        None,
        {"step": 3, "lr": 0.1, "none": None, "yes": True, "name": "ä\udc80\n\0"},
        {0: 300, 10: 236},
        {(1, "a"): [1, (2, 3)], 2.5: {}, None: ()},
        {"!tuple": [1], "!": 2},
        {"!tensor": 0},
        [math.inf, -math.inf, 1e-300, 0.1 + 0.2, 2**80, -0.0],
        {"betas": (0.9, 0.999), "nested": ((), [()])},
        b"",
        bytes(range(256)),
    ],
)
def test_a_round_trip_changes_nothing(state):
    found = unpack(pack(state, "x"), "x")
    assert found == state and repr(found) == repr(state)


def test_tensors_and_arrays_are_stored_separately():
    tensors = [torch.arange(6).view(2, 3), torch.tensor(2.5, dtype=torch.bfloat16), torch.empty(0, 4)]
    arrays = [np.arange(5, dtype=np.int64), np.arange(6.0)[::-2], np.array(7, dtype=np.int32)]
    state = OrderedDict(tensors=tensors, arrays=tuple(arrays), scalar=np.float32(0.1), count=np.int64(3))
    parts = pack(state, "x")
    assert parts["x/0"].data_ptr() == tensors[0].data_ptr()  # not copied
    found = unpack(parts, "x")
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found["tensors"], tensors, strict=True))
    for there, here in zip(found["arrays"], arrays, strict=True):
        assert isinstance(there, np.ndarray) and there.dtype == here.dtype and np.array_equal(there, here)
        assert there.shape == here.shape
    assert found["scalar"] == float(np.float32(0.1)) and found["count"] == 3


@pytest.mark.parametrize("value", [object(), print, {1, 2}, 1j, np.array(["a"]), torch.float32])
def test_values_that_are_not_data_are_refused(value):
    with pytest.raises(ValueError, match=r"x\.head\[1\] has type .*, which a checkpoint cannot store"):
        pack({"head": [0, value]}, "x")


@pytest.mark.parametrize(
    "text",
    ['{"!tensor": 0}', '{"!array": "0"}', '{"!run": 0}', '{"!dict": [1]}', '{"!tuple": 1}', "", "\x80", "[" * 9999],
)
def test_text_that_is_not_ours_is_refused(text):
    raw = torch.frombuffer(bytearray(text.encode("latin1") or b" "), dtype=torch.uint8)
    with pytest.raises(ValueError, match="is not what this program writes"):
        unpack({"x": raw}, "x")
