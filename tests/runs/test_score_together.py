"""Several encoders in one pass: the tables of single runs, each image read once, and continued after a stop."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from influence_ssl_jax.cli import main
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.curvature.blocks import entries_at_once
from influence_ssl_jax.data import Digits, ToInput, sharing
from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.data.examples import UnreadableExample, read_all
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import InfluenceError, SkippedError, StoreError
from influence_ssl_jax.ihvp import Identity
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.progress import Advanced, Ended, Note, Started, Written
from influence_ssl_jax.runs import score as runs_score
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, Parts, ScoreRun
from influence_ssl_jax.scoring import memory
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import ScoreStore

SOURCE = Digits(size=8, digits=16, exact_duplicates=0.1, near_duplicates=0.1, blanks=0.1, noise=0.1)
SIZE, IN_SET = len(SOURCE.open()), 8
INPUTS = {"first": ToInput(4, 4), "second": ToInput(4, 4), "third": ToInput(3, 3, 1)}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Linear networks in files: two of one input, one of another."""
    folder = tmp_path_factory.mktemp("encoders")
    for seed, (name, to_input) in enumerate(INPUTS.items()):
        size = to_input.height * to_input.width * to_input.channels
        kernel = jnp.asarray(np.random.default_rng(seed).normal(size=(size, 3)), jnp.float32)
        variables = {"params": {"dense": {"kernel": kernel}}}
        Encoder.from_linen(Linear(3), variables, input=to_input, name=name).save(folder / name)
    return folder


def command(folder, out, names=tuple(INPUTS), **changes):
    first, *others = (folder / name for name in names)
    chosen = CurvatureSet(examples=IN_SET, batch_size=4)
    scoring = Scoring(draws=1, batch_size=4)
    settings = ScoreRun(
        first, out, SOURCE, also=tuple(others), curvature=chosen, backend=Identity(probes=1), scoring=scoring
    )
    return dataclasses.replace(settings, **changes)


@pytest.fixture(scope="module")
def alone(encoders, tmp_path_factory):
    """The folders of single runs."""
    out = tmp_path_factory.mktemp("alone")
    for name in INPUTS:
        score(command(encoders, out / name, (name,)))
    return out


def same(one, other):
    """Whether two folders have the same table, fit and identity, byte by byte, and the same record but for times."""
    for name in ("scores.parquet", "identity.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for record in records:
        record["configuration"] |= {"out": None, "parts": None}
        record["counts"]["resumed"] = None
    differing = {name for name in records[0] if records[0][name] != records[1].get(name)}
    assert records[0].keys() == records[1].keys()
    assert differing <= {"sum", "parts", "wall_seconds", "seconds_waiting_for", "share_waiting_for_images"}


@pytest.fixture
def reads(monkeypatch):
    """The images that are read to be scored, and not for a curvature set."""
    counted = []

    def counting(source, indices):
        counted.extend(indices)
        return read_all(source, indices)

    monkeypatch.setattr(sharing, "read_all", counting)
    return counted


def test_the_memory_of_all_encoders_is_added_up(encoders, tmp_path, monkeypatch):
    """Each alone fits a device with room for what one holds; two do not."""
    room = 4 * entries_at_once()
    monkeypatch.setattr(memory, "available_memory", lambda: (room, "cpu"))
    for name in INPUTS:
        score(command(encoders, tmp_path / name, (name,)))
    with pytest.raises(
        InfluenceError, match=r"second: Identity keeps .* the encoders before it need .* fewer together"
    ):
        score(command(encoders, tmp_path / "out", ("first", "second")))
    monkeypatch.setattr(memory, "available_memory", lambda: (3 * room, "cpu"))
    score(command(encoders, tmp_path / "out", ("first", "second")))
    same(tmp_path / "second", tmp_path / "out" / "second")


def test_each_folder_is_that_of_a_single_run_and_each_image_is_read_once(encoders, alone, tmp_path, reads):
    events = []
    score(command(encoders, tmp_path / "out"), events.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(INPUTS)
    assert sorted(reads) == list(range(SIZE))
    for name in INPUTS:
        same(alone / name, tmp_path / "out" / name)

    counting = [event for event in events if isinstance(event, Started) and event.total is not None]
    assert counting == [Started("scoring by first, second, third", 0, 3 * SIZE)]
    counts = [event for event in events if isinstance(event, Advanced)]
    assert {event.stage for event in counts} == {"scoring by first, second, third"}
    assert [event.done for event in counts] == sorted(event.done for event in counts)
    assert (counts[-1].done, counts[-1].total) == (3 * SIZE, 3 * SIZE)
    named = [event for event in events if isinstance(event, Note) and f"{SIZE} images: " in event.text]
    assert [event.text.partition(":")[0] for event in named] == list(INPUTS)
    assert [event.name for event in events if isinstance(event, Written)] == [f"{name}: Scores" for name in INPUTS]
    opened = []
    for event in events:  # a console shows one stage at a time
        if isinstance(event, Started):
            assert not opened
            opened.append(event.stage)
        elif isinstance(event, Ended):
            assert opened.pop() == event.stage

    # Finished: each alone, and all together, have nothing to do.
    del reads[:]
    told = Console(width=200)
    with told.capture() as said:
        score(command(encoders, tmp_path / "out"), Renderer(told))
        score(command(encoders, tmp_path / "out" / "second", ("second",)), Renderer(told))
    assert said.get().count("Nothing to do") == 4


def test_a_stopped_run_is_continued_by_single_commands_and_the_reverse(encoders, alone, tmp_path, monkeypatch, reads):
    out, appended = tmp_path / "out", ScoreStore.append

    def append_some(store, table):
        if store.folder.name == "second" and len(store.done()) >= 8:
            raise KeyboardInterrupt
        appended(store, table)

    monkeypatch.setattr(ScoreStore, "append", append_some)
    with pytest.raises(KeyboardInterrupt):
        score(command(encoders, out, parts=Parts(4)))
    monkeypatch.setattr(ScoreStore, "append", appended)
    done = {}
    for name in INPUTS:
        lines = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
        assert (lines[-1]["event"], lines[-1]["reason"]) == ("stopped", "interrupted (Ctrl-C)")
        done[name] = sum(line["rows"] for line in lines if line["event"] == "part")
    assert done == {"first": 12, "second": 8, "third": 8}

    score(command(encoders, out / "first", ("first",), parts=Parts(4)))
    del reads[:]
    score(command(encoders, out, parts=Parts(4)))
    for name in INPUTS:
        same(alone / name, out / name)
    # `first` is finished; the others share what is left.
    assert sorted(reads) == list(range(min(done["second"], done["third"]), SIZE))
    assert all(pq.read_table(out / name / "scores.parquet").num_rows == SIZE for name in INPUTS)


def test_encoders_with_batches_of_different_sizes_share_each_image(encoders, alone, tmp_path, reads):
    fits, tried = runs_score._fits, []

    def of_another_size(scorer, mesh):
        tried.append(scorer.batch_size)
        return fits(scorer, mesh) and scorer.batch_size <= (2 if len(tried) < 3 else 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_score, "_fits", of_another_size)
        score(command(encoders, tmp_path / "mixed"))
    sizes = [json.loads((tmp_path / "mixed" / name / "run.json").read_text())["batch_size"] for name in INPUTS]
    assert sizes == [2, 4, 4]
    assert sorted(reads) == list(range(SIZE))
    for name in ("second", "third"):
        tables = [(folder / name / "scores.parquet").read_bytes() for folder in (alone, tmp_path / "mixed")]
        assert tables[0] == tables[1]


def test_an_encoder_that_cannot_be_scored_is_refused_by_name_before_any_is_fitted(encoders, alone, tmp_path):
    told = Console(width=300)
    places = [str(encoders / "first"), str(tmp_path / "absent")]
    words = ["score", "--encoder", places[0], "--also", places[1], "--out", str(tmp_path / "out")]
    with told.capture() as said:
        assert main.run(words, Console(quiet=True), told) == 2
    assert "absent: There is no " in said.get()
    assert not (tmp_path / "out" / "first" / "fitted.npz").exists()

    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "First").symlink_to(encoders / "first")
    with pytest.raises(InfluenceError, match="Two encoders have the name First"):
        score(command(encoders, tmp_path / "out", also=(tmp_path / "again" / "First",)))
    shutil.copytree(alone / "first", tmp_path / "one")
    with pytest.raises(StoreError, match=r"one holds the scores of one encoder.*Choose another folder"):
        score(command(encoders, tmp_path / "one"))
    (tmp_path / "other").mkdir()
    (tmp_path / "one").rename(tmp_path / "other" / "first")
    with pytest.raises(StoreError, match=r"(?s)^first: .*scoring.draws: 1 → 2"):
        score(command(encoders, tmp_path / "other", scoring=Scoring(draws=2, batch_size=4)))


def test_unusable_images_are_told_of_after_all_tables_are_written(encoders, tmp_path, monkeypatch):
    read = InMemory.read

    def damaged(source, index):
        if index < 6:
            raise UnreadableExample(index, str(index), "truncated")
        return read(source, index)

    monkeypatch.setattr(InMemory, "read", damaged)
    with pytest.raises(SkippedError, match=f"first: 6 of {SIZE} images could not be used"):
        score(command(encoders, tmp_path / "out", curvature=CurvatureSet(examples=4, batch_size=4)))
    for name in INPUTS:
        table = pq.read_table(tmp_path / "out" / name / "scores.parquet")
        assert table["reason"].to_pylist()[:6] == ["truncated"] * 6
        assert np.isfinite(table["score"].to_numpy()[6:]).sum() > 0


def test_an_object_has_a_name_and_a_folder_of_it(encoders, tmp_path):
    loaded = Encoder.load(encoders / "third")
    named = dataclasses.replace(loaded, name="mine")
    runs = runs_score.split_runs(command(encoders, tmp_path, ("first", "second"), encoder=named))
    assert {name: run.out for name, run in runs.items()} == {"mine": tmp_path / "mine", "second": tmp_path / "second"}
    assert all(run.also == () for run in runs.values())
    with pytest.raises(InfluenceError, match="folder of its name, got 'a/b'"):
        runs_score.split_runs(command(encoders, tmp_path, encoder=dataclasses.replace(loaded, name="a/b")))
    assert jax.tree.leaves(runs["mine"].encoder.params)[0] is jax.tree.leaves(loaded.params)[0]
