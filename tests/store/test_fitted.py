"""A fitted curvature comes back whole, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.store import digest_of, load_fitted, save_fitted

STATE = {
    "values": jnp.arange(6.0).reshape(2, 3),
    "short": jnp.arange(3, dtype=jnp.bfloat16) / 3,  # rows of Gram may be kept so; a file of NumPy's has no such type
    "key": jax.random.split(jax.random.key(3), 2),
    "count": jnp.int32(4),
}


def loaded(folder, owner="mine"):
    shapes = jax.eval_shape(lambda: STATE)
    leaves, structure = jax.tree.flatten(shapes)
    return load_fitted(folder, leaves, structure, owner)


def test_every_bit_comes_back_keys_and_notes_too(tmp_path):
    save_fitted(tmp_path, STATE, "mine", {"batch": 8})
    state, notes = loaded(tmp_path)
    assert notes == {"batch": 8}
    assert digest_of(state) == digest_of(STATE)
    np.testing.assert_array_equal(state["values"], STATE["values"])
    assert state["short"].dtype == jnp.bfloat16
    assert (jax.random.bits(state["key"][1]) == jax.random.bits(STATE["key"][1])).all()


def test_a_digest_sees_one_bit():
    other = {**STATE, "values": STATE["values"].at[0, 0].set(5e-324)}
    assert digest_of(other) != digest_of(STATE)


def test_another_owners_state_is_never_returned(tmp_path):
    save_fitted(tmp_path, STATE, "mine")
    assert loaded(tmp_path, "another's") is None
    assert loaded(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("name", ["fitted.npz", "fitted.json"])
@pytest.mark.parametrize("length", [0, 40, -1])
def test_a_damaged_file_is_as_none(tmp_path, name, length):
    save_fitted(tmp_path, STATE, "mine")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:length])
    assert loaded(tmp_path) is None
