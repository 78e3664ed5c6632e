"""What strangers hand over is data and never code, and a small file cannot ask for all memory."""

import ast
import io
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_ssl_jax import checkpoint
from influence_ssl_jax.data import attributes
from influence_ssl_jax.data.attributes import read_table
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.store import load_fitted, save_fitted
from influence_ssl_jax.store.files import write_atomically

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [file for folder in ("influence_ssl_jax", "experiments") for file in (ROOT / folder).rglob("*.py")]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
CALLS = {"eval", "exec", "read_pickle", "from_pickle", "unsafe_load"}


def named(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def owner(call):
    """`np` of `np.load`."""
    return getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""


def offences(source):
    """Where a program could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            safe = any(
                k.arg == "allow_pickle" and isinstance(k.value, ast.Constant) and k.value.value is False
                for k in node.keywords
            )
            if named(node) == "load" and owner(node) in ("np", "numpy", "jnp") and not safe:
                yield "np.load without allow_pickle=False"
            elif owner(node) == "torch" and named(node) == "load":
                if not any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords):
                    yield "torch.load without weights_only=True"
            elif named(node) in CALLS and owner(node) in ("", "pd", "pandas", "builtins", "yaml"):
                yield named(node)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "eval(text)",
        "pd.read_pickle(f)",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert list(offences(source))


def test_no_code_here_runs_what_it_reads():
    assert len(SOURCES) > 100
    offences_by_file = {str(file.relative_to(ROOT)): list(offences(file.read_text())) for file in SOURCES}
    assert {name: what for name, what in offences_by_file.items() if what} == {}


class Payload:
    """What unpickling would run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.write_text, (self.trace, "it ran")


def replaced(file, content):
    """The archive with its first array's bytes replaced."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[next(iter(members))] = content
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, each in members.items():
            archive.writestr(name, each)


def test_a_checkpoint_with_a_pickle_inside_is_refused_and_does_not_run(tmp_path):
    like = {"kernel": np.zeros((2, 3), np.float32)}
    files = checkpoint.save(tmp_path / "net", like, {})
    malicious = io.BytesIO()
    np.save(malicious, np.array([Payload(tmp_path / "trace")], dtype=object), allow_pickle=True)
    replaced(files.arrays, malicious.getvalue())
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.load(tmp_path / "net", like)
    files.arrays.write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.load(tmp_path / "net", like)
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_that_unpacks_to_far_more_than_its_network_is_refused_before_it_does(tmp_path):
    like = {"kernel": np.zeros((2, 3), np.float32)}
    files = checkpoint.save(tmp_path / "net", like, {})
    replaced(files.arrays, bytes(50_000_000))
    assert files.arrays.stat().st_size < 100_000
    with pytest.raises(checkpoint.CheckpointError, match="would unpack to 50,000,000 bytes"):
        checkpoint.load(tmp_path / "net", like)


def test_a_fitted_curvature_that_was_tampered_with_is_not_read(tmp_path):
    state = [jnp.arange(3.0)]
    save_fitted(tmp_path, state, "owner")
    malicious = io.BytesIO()
    np.savez(malicious, allow_pickle=True, **{"00000": np.array([Payload(tmp_path / "trace")], dtype=object)})
    write_atomically(tmp_path / "fitted.npz", malicious.getvalue())
    leaves = [jax.ShapeDtypeStruct((3,), state[0].dtype)]
    assert load_fitted(tmp_path, leaves, jax.tree.structure(state), "owner") is None
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(("limit", "value"), [("MAX_CELLS", 999), ("MAX_BYTES", 10)])
def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, limit, value):
    pq.write_table(pa.table({"file": ["a.png"] * 1000}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").num_rows == 1000
    monkeypatch.setattr(attributes, limit, value)
    with pytest.raises(DataError, match="expands to 1,000 rows"):
        read_table(tmp_path / "t.parquet")
