"""State files that know when they are damaged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.store import DamagedError, read_sealed, write_sealed

CONTENT = {
    "text": "größer\udce9",
    "number": 0.1,
    "missing": None,
    "nested": {"list": [1, 2.5, "three"], "nan": float("inf")},
}


def test_what_is_written_is_read_again(tmp_path):
    write_sealed(tmp_path / "a.json", CONTENT)
    assert read_sealed(tmp_path / "a.json") == CONTENT
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "b.json")


@given(seed=st.integers(0, 2**32 - 1))
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, seed):
    path, draw = tmp_path_factory.mktemp("sealed") / "a.json", np.random.default_rng(seed)
    write_sealed(path, CONTENT)
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    try:
        assert read_sealed(path) == CONTENT
    except DamagedError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("text", ["", "null", "[]", '"text"', "{}", '{"sum": null}', "[" * 100_000, '{"a": ' * 100_000])
def test_what_is_no_sealed_object_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedError, match=r"a.json is damaged: it"):
        read_sealed(tmp_path / "a.json")
