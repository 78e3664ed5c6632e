"""Files of weights are read as data: every kind of array, and nothing that a pickle asks to be run."""

import collections
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from influence_ssl_jax import checkpoints
from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints import WeightsFile
from influence_ssl_jax.checkpoints.tensors import Foreign, Tensor, interpret, read_safetensors, read_torch

FILES = pathlib.Path(__file__).parent / "files"
BASE = np.arange(24, dtype=np.float64).reshape(4, 6)
ARRAYS = {
    "float64": BASE,
    "float16": BASE,
    "bfloat16": BASE,
    "int64": BASE,
    "uint8": BASE,
    "bool": BASE > 3,
    "parameter": BASE,
    "transposed": BASE.T,
    "part": BASE[1:3, ::2],
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("name", ["containers.pt", "containers_legacy.pt", "containers.safetensors"])
def test_every_kind_of_array_has_its_values(name):
    path = FILES / name
    content = read_safetensors(path) if name.endswith("safetensors") else read_torch(path)
    arrays = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    assert arrays.keys() == ARRAYS.keys() - ({"scalar"} if name.endswith("safetensors") else set())
    for key, tensor in arrays.items():
        assert tensor.shape == ARRAYS[key].shape
        assert tensor.dtype == (
            key if key in ("float64", "float16", "bfloat16", "int64", "uint8", "bool") else "float32"
        )
        np.testing.assert_array_equal(tensor.numpy().astype(np.float64), ARRAYS[key])


@pytest.mark.parametrize("name", ["containers.pt", "containers_legacy.pt"])
def test_what_is_no_array_is_plain_or_only_named(name):
    content = read_torch(FILES / name)
    assert content["settings"] == {"rate": 0.5, "names": ["a", "b"], "size": (2, 3), "none": None, "yes": True}
    assert (content["namespace"].name, content["path"].name) == ("argparse.Namespace", "pathlib.PosixPath")


class Runs:
    """What unpickling would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nowhere(storage):
    return storage.count, lambda: b""


def zipped(path, content, compression=zipfile.ZIP_STORED, protocol=2):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(5))
def test_a_payload_does_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    payloads = [
        Runs(pathlib.Path.write_text, trace, "it ran"),
        Runs(os.system, f"touch {trace}"),
        Runs(exec, f"import pathlib; pathlib.Path({str(trace)!r}).touch()"),
        Runs(collections.OrderedDict, [("weight", Runs(os.system, f"touch {trace}"))]),
    ]
    for payload in payloads:
        content = {"state_dict": {"conv1.weight": payload}, "epoch": 3}
        assert pickle.loads(pickle.dumps(content, protocol)) is not None
        assert trace.exists()  # the payload works where pickles are executed
        trace.unlink()
        imported = read_torch(zipped(tmp_path / "evil.ckpt", content, protocol=protocol))
        assert imported["epoch"] == 3
        with pytest.raises(CheckpointError, match="Name it with --as"):
            checkpoints.read(tmp_path / "evil.ckpt")
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(CheckpointError, match="not a file of torch"):
            checkpoints.read(tmp_path / "evil.pth")
        assert not trace.exists()


def test_objects_with_state_and_items_are_only_named():
    held = interpret(io.BytesIO(pickle.dumps({"a": pathlib.PurePosixPath("x"), "b": {1, 2}, "c": 1j}, 4)), nowhere)
    assert isinstance(held["a"], Foreign)
    assert held["b"] == [1, 2]
    assert held["c"].name == "builtins.complex"
    assert interpret(io.BytesIO(b"(S'touch x'\niposix\nsystem\n."), nowhere).name == "posix.system"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a file of torch, or damaged"),
        (b"hello", "not a file of torch, or damaged"),
        (pickle.dumps(1), "not a file of torch, or damaged"),
        ((FILES / "containers_legacy.pt").read_bytes()[:700], "not a file of torch, or damaged"),
        ((FILES / "containers.pt").read_bytes()[:-200], "not a file of torch, or damaged"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, said):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_torch(tmp_path / "x.pth")


def _values(content):
    return [value.numpy() for value in content.values() if isinstance(value, Tensor)]


def test_every_cut_of_a_file_is_refused(tmp_path):
    for name, read in (("containers_legacy.pt", read_torch), ("containers.safetensors", read_safetensors)):
        whole = (FILES / name).read_bytes()
        for end in range(0, len(whole), 37):
            (tmp_path / name).write_bytes(whole[:end])
            with pytest.raises(CheckpointError):
                _values(read(tmp_path / name))


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    with pytest.raises(CheckpointError, match="compressed members"):
        read_torch(zipped(tmp_path / "x.pth", {"a": "0" * 10**6}, zipfile.ZIP_DEFLATED))
    for shape, strides, offset in [((10**9,), (1,), 0), ((5,), (1,), 0), ((2,), (1,), 3), ((2,), (-1,), 1)]:
        with pytest.raises(CheckpointError, match="reads outside its 4 stored values"):
            Tensor(shape, "float32", strides, offset, 4, lambda: bytes(16)).numpy()
    with pytest.raises(CheckpointError, match="repeats its 4 stored values"):
        Tensor((10**9,), "float32", (0,), 0, 4, lambda: bytes(16)).numpy()
    with pytest.raises(CheckpointError, match="truncated"):
        Tensor((4,), "float32", (1,), 0, 4, lambda: bytes(15)).numpy()


def test_other_contents_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"whole model, an object of torch.nn.modules.linear.Linear.*state_dict"):
        checkpoints.read(FILES / "whole_model.pt")
    with pytest.raises(CheckpointError, match="holds a int, not a dict"):
        checkpoints.read(zipped(tmp_path / "x.pth", 3))
    with pytest.raises(CheckpointError, match="There is no file"):
        checkpoints.read(tmp_path / "absent.pth")
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(CheckpointError, match="a has the type F8_E4M3"):
        checkpoints.read(tmp_path / "x.safetensors")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/code/model.py", "")
    with pytest.raises(CheckpointError, match="holds a program of TorchScript"):
        checkpoints.read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("shape", "places", "said"),
    [
        ([2], [[0, 8], [4, 12]], "a and b are in the same bytes"),
        ([-1, -2], [[0, 8], [8, 16]], "not whole numbers"),
        ([2], [[0.0, 8.0], [8, 16]], "not whole numbers"),
    ],
)
def test_impossible_headers_are_refused(tmp_path, shape, places, said):
    file = tmp_path / "x.safetensors"
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": each} for name, each in zip("ab", places, strict=True)
    }
    header = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(CheckpointError, match=said):
        read_safetensors(file)


def test_the_content_says_what_a_file_is(tmp_path):
    for name in ("torchvision.pth", "timm.safetensors", "mae.pth"):
        other = (tmp_path / name).with_suffix(".pth" if name == "timm.safetensors" else ".safetensors")
        other.write_bytes((FILES / name).read_bytes())
        assert WeightsFile.open(other).groups() == WeightsFile.open(FILES / name).groups()


def test_a_changed_bit_is_found(tmp_path):
    content = bytearray((FILES / "mae.pth").read_bytes())
    (tmp_path / "mae.pth").write_bytes(content)
    file = WeightsFile.open(tmp_path / "mae.pth")
    at = content.index(file.group("model")["norm.weight"].read())
    content[at] ^= 1
    (tmp_path / "mae.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"mae.pth is damaged \(Bad CRC-32"):
        file.group("model")["norm.weight"].numpy()
