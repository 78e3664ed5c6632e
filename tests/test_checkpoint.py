"""Saved networks: what is written is read again; what is damaged or foreign is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax import checkpoint
from influence_ssl_jax.checkpoint import CheckpointError


def variables(seed=0):
    draw = np.random.default_rng(seed)
    return {
        "params": {"conv": {"kernel": jnp.asarray(draw.normal(size=(3, 2)), jnp.float32)}, "bias": jnp.ones(2)},
        "frozen": {"batch_stats": {"var": jnp.asarray(1e6 * draw.random(2), jnp.float32)}},
    }


def float32(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "net", float32(variables()), {"width": 4})
    return tmp_path / "net"


@pytest.mark.parametrize("name", ["net", "net.npz", "net.json", "net.v1"])
def test_what_is_written_is_read_again(tmp_path, name):
    files = checkpoint.save(tmp_path / "deep" / name, float32(variables()), {"width": 4, "note": "größer"})
    assert files.arrays.suffix == ".npz"
    assert files.description.suffix == ".json"
    assert checkpoint.describe(tmp_path / "deep" / name)["note"] == "größer"
    loaded = checkpoint.load(tmp_path / "deep" / name, jax.eval_shape(lambda: float32(variables())))
    jax.tree.map(np.testing.assert_array_equal, loaded, float32(variables()))


@given(seed=st.integers(0, 1000))
def test_float16_rounds_parameters_to_eleven_bits_and_statistics_not_at_all(tmp_path_factory, seed):
    original, path = float32(variables(seed)), tmp_path_factory.mktemp("half") / "net"
    checkpoint.save(path, original, {}, "float16")
    loaded = checkpoint.load(path, original)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25), loaded, original)
    jax.tree.map(np.testing.assert_array_equal, loaded["frozen"], original["frozen"])
    assert loaded["params"]["bias"].dtype == jnp.float32


def test_values_outside_the_range_of_float16_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a/kernel has values up to 7e\+04, outside the range of float16"):
        checkpoint.save(tmp_path / "net", {"a": {"kernel": np.asarray([1.0, -7e4])}}, {}, "float16")
    assert not list(tmp_path.iterdir())


def test_nothing_is_pickled(saved):
    with np.load(saved.with_name("net.npz"), allow_pickle=False) as archive:
        assert {archive[name].dtype for name in archive.files} == {np.dtype(np.float32)}
    np.savez(saved.with_name("net.npz"), **{"params/bias": np.array([object()])})
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(saved, variables())


@pytest.mark.parametrize("missing", ["net.npz", "net.json"])
def test_an_absent_file_is_named(saved, missing):
    saved.with_name(missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing}; check the path"):
        checkpoint.load(saved, variables())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["net.npz", "net.json"])
def test_a_truncated_file_is_named(saved, name, share):
    file = saved.with_name(name)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved, variables())


def test_a_changed_array_is_noticed(saved):
    checkpoint.save(saved.with_name("other"), float32(variables(1)), {"width": 4})
    saved.with_name("other.npz").replace(saved.with_name("net.npz"))
    with pytest.raises(CheckpointError, match="is not the file that"):
        checkpoint.load(saved, variables())


def test_another_architecture_is_refused_name_by_name(saved):
    like = float32(variables())
    like["params"]["conv"] = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
    del like["frozen"]
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(saved, like)
    assert str(raised.value).splitlines()[1:] == [
        "  frozen/batch_stats/var: (2,) in the file, not in the network",
        "  params/conv/bias: not in the file, expected (4,)",
        "  params/conv/kernel: (3, 2) in the file, expected (3, 4)",
    ]


def test_of_many_differences_the_first_are_named_and_the_rest_counted(tmp_path):
    tree = {"params": {f"w{k:02}": jnp.zeros(2) for k in range(30)}}
    checkpoint.save(tmp_path / "net", tree, {})
    with pytest.raises(CheckpointError, match="30 arrays differ") as raised:
        checkpoint.load(tmp_path / "net", jax.tree.map(lambda _: jnp.zeros(3), tree))
    lines = str(raised.value).splitlines()
    assert len(lines) == checkpoint.SHOWN + 2
    assert lines[-1] == f"  … and {30 - checkpoint.SHOWN} more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "holds list, not an object"),
        ("null", "holds NoneType"),
        ("[" * 100_000, "not JSON"),
        ('{"format": 99}', "has format 99, this version reads format 2"),
        ("{}", "has format None"),
        ('{"format": 2}', "does not have the checksum"),
    ],
)
def test_what_is_no_description_of_this_format_is_refused(saved, text, said):
    saved.with_name("net.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.describe(saved)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_bit_flipped_anywhere_in_either_file_is_noticed_or_changes_nothing(tmp_path_factory, seed):
    path, draw = tmp_path_factory.mktemp("net") / "net", np.random.default_rng(seed)
    files = checkpoint.save(path, float32(variables()), {"width": 4, "note": "a setting", "history": [{"epoch": 0}]})
    before, file = checkpoint.describe(path), (files.arrays, files.description)[draw.integers(2)]
    content = bytearray(file.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    file.write_bytes(content)
    try:
        described, loaded = checkpoint.describe(path), checkpoint.load(path, float32(variables()))
    except CheckpointError:
        return
    assert described == before
    jax.tree.map(np.testing.assert_array_equal, loaded, float32(variables()))


def test_a_failed_write_leaves_the_network_that_was_there(saved, monkeypatch):
    before = [saved.with_name(name).read_bytes() for name in ("net.npz", "net.json")]

    def torn(file, **_):
        file.write(b"half an archive")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.np, "savez_compressed", torn)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, float32(variables(1)), {"width": 5})
    assert [saved.with_name(name).read_bytes() for name in ("net.npz", "net.json")] == before
    assert len(list(saved.parent.iterdir())) == 2


def test_a_description_is_utf8_whatever_the_locale_and_holds_any_path(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "latin-1")
    said = {"path": "bilder/größer/\udce9t\u00e9.png", "greek": "λ"}
    checkpoint.save(tmp_path / "net", float32(variables()), said)
    assert checkpoint.describe(tmp_path / "net") | said == checkpoint.describe(tmp_path / "net")


def test_the_description_is_plain_json(saved):
    description = json.loads(saved.with_name("net.json").read_text())
    assert description["width"] == 4
    assert set(description) == {"format", "digest", "width", "sum"}
