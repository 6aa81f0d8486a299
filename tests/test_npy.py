"""Our .npy files against NumPy's."""

import io

import numpy as np
import pytest

from storydist.data.npy import from_npy, to_npy


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 0), (4, 3), (2, 5, 7, 3)])
@pytest.mark.parametrize("dtype", ["|u1", "<i4", "<f4"])
def test_the_same_bytes_as_numpy_and_back(shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    buffer = io.BytesIO()
    np.save(buffer, array)
    data = to_npy(array)
    assert np.array_equal(np.load(io.BytesIO(data)), array)
    for file in (data, buffer.getvalue()):
        found = from_npy(file, dtype, (None,) * len(shape))
        assert np.array_equal(found, array) and found.dtype == array.dtype


def test_layout_in_memory_does_not_show():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert to_npy(np.asfortranarray(array)) == to_npy(array) == to_npy(array.astype(">i4"))


def test_objects_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="header"):
        from_npy(buffer.getvalue(), "<i4", (None,))
    with pytest.raises(ValueError, match="cannot be stored"):
        to_npy(np.zeros(2, np.float64))


@pytest.mark.parametrize(("dtype", "shape"), [("<f4", (3,)), ("<i4", (4,)), ("<i4", (3, 1))])
def test_other_dtype_or_shape_is_refused(dtype, shape):
    with pytest.raises(ValueError, match="needed"):
        from_npy(to_npy(np.zeros(3, np.int32)), dtype, shape)


def test_every_cut_is_noticed():
    data = to_npy(np.arange(5, dtype=np.int32))
    for end in range(len(data)):
        with pytest.raises(ValueError):
            from_npy(data[:end], "<i4", (5,))
