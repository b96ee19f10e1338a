"""Checksums of arrays."""

import zlib

import numpy as np
import pytest

from calibrators.fingerprint import checksum, content


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bool", ">i4"])
def test_the_bytes_are_those_of_the_values_in_c_order(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    assert bytes(content(array)) == array.tobytes()
    assert bytes(content(array.T)) == array.T.tobytes()
    assert bytes(content(array[:, ::2])) == array[:, ::2].tobytes()


@pytest.mark.parametrize("array", [np.float32(3), np.empty((0, 4), np.float32)], ids=["scalar", "empty"])
def test_arrays_without_axes_or_values(array):
    assert checksum(np.asarray(array)) == zlib.crc32(np.asarray(array).tobytes())


def test_text_counts_by_its_spelling_not_by_where_it_lies():
    one = np.array(["cat", "do" + "g"], object)
    assert checksum(one) == checksum(np.array(["".join(("c", "at")), "dog"], object))
    assert checksum(one) != checksum(np.array(["cat", "dot"], object))


def test_a_stretch_may_be_cut_anywhere():
    array = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    assert checksum(array[3:], checksum(array[:3])) == checksum(array) != checksum(array[3:])
