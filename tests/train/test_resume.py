"""Going on with a training run: damaged, replaced and foreign states, other images, other inputs."""

import contextlib
import dataclasses
import resource as limits
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.data import Arrays, ToInput, cache
from influence_ssl_jax.errors import FullDiskError
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.store import write_sealed
from influence_ssl_jax.train import Probe, TrainingError, loop, pretrain, resume
from influence_ssl_jax.train.resume import Checkpoints, _drop_abandoned_reads, claim
from influence_ssl_jax.train.state import TrainState
from tests.train.small import INPUT, coloured, small

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax, after a failure
DESCRIPTION = {"pretrain": {"seed": 0}, "data": "abc"}


def state(number):
    """A state of two arrays that tells the epochs apart."""
    values = jnp.arange(64.0, dtype=jnp.float32).reshape(8, 8) + number
    return TrainState(jnp.asarray(number, jnp.int32), {"kernel": values}, {"mean": values[0]}, {"trace": values * 2})


@pytest.fixture
def three(tmp_path):
    """The folder after three epochs, of which the last two are kept."""
    checkpoints = Checkpoints(tmp_path, keep=2, owner="ours")
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, state(epoch))
    checkpoints.close()
    return tmp_path


def latest(folder):
    checkpoints = Checkpoints(folder, keep=2, owner="ours")
    try:
        return checkpoints.latest(state(0))
    finally:
        checkpoints.close()


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, vars(left), vars(right))


def test_the_newest_state_is_taken(three):
    epoch, latest_state = latest(three)
    assert epoch == 3
    equal(latest_state, state(3))


def test_a_bit_flipped_in_the_newest_state_is_noticed_and_the_one_before_taken(three, caplog):
    draw = np.random.default_rng(0)
    files = [file for file in (three / "checkpoints" / "3").rglob("*") if file.is_file() and file.stat().st_size]
    silently_other = 0
    for _ in range(8):
        shutil.copytree(three, three.parent / "tried", dirs_exist_ok=False)
        file = three.parent / "tried" / files[draw.integers(len(files))].relative_to(three)
        content = bytearray(file.read_bytes())
        content[draw.integers(len(content))] ^= 1 << draw.integers(8)
        file.write_bytes(content)
        epoch, latest_state = latest(three.parent / "tried")
        silently_other += not all(jax.tree.leaves(jax.tree.map(np.array_equal, vars(latest_state), vars(state(epoch)))))
        assert epoch in (2, 3)
        shutil.rmtree(three.parent / "tried")
    assert silently_other == 0


def test_arrays_of_which_one_number_is_another_are_not_taken(three, monkeypatch, caplog):
    """Damage that orbax reads without a word."""
    restore = resume.ocp.CheckpointManager.restore

    def with_another_number(manager, step, **options):
        restored = restore(manager, step, **options)
        return (
            restored
            if step != 3
            else {**restored, "params": {"kernel": restored["params"]["kernel"].at[0, 0].add(1e-6)}}
        )

    monkeypatch.setattr(resume.ocp.CheckpointManager, "restore", with_another_number)
    epoch, latest_state = latest(three)
    assert epoch == 2
    equal(latest_state, state(2))
    assert "the state after epoch 3" in caplog.text
    assert (
        "is damaged (its digest is not the one that was kept for this epoch); the one before it is used" in caplog.text
    )


def test_a_copy_of_an_older_state_does_not_pass_for_the_newer_one(three, caplog):
    shutil.rmtree(three / "checkpoints" / "3")
    shutil.copytree(three / "checkpoints" / "2", three / "checkpoints" / "3")
    epoch, latest_state = latest(three)
    assert epoch == 2
    equal(latest_state, state(2))
    assert "the state after epoch 3" in caplog.text


@pytest.mark.parametrize("damage", ["emptied", "deleted"])
def test_a_newest_state_that_cannot_be_read_is_passed_over_and_its_epoch_saved_again(three, damage):
    for file in [each for each in (three / "checkpoints" / "3").rglob("*") if each.is_file()]:
        if damage == "deleted":
            file.unlink()
        else:
            file.write_bytes(b"")
    assert latest(three)[0] == 2
    checkpoints = Checkpoints(three, keep=2, owner="ours")
    checkpoints.save(3, state(3))
    checkpoints.close()
    epoch, latest_state = latest(three)
    assert epoch == 3
    equal(latest_state, state(3))


def test_states_of_another_run_are_not_taken(three, caplog):
    checkpoints = Checkpoints(three, keep=2, owner="another")
    epoch, latest_state = checkpoints.latest(state(0))
    checkpoints.close()
    assert epoch == 0
    equal(latest_state, state(0))
    assert "its digest is not the one that was kept" in caplog.text


def test_a_full_disk_is_one_error_without_a_traceback_of_orbax(tmp_path, caplog):
    large = dataclasses.replace(state(1), params={"w": jnp.asarray(np.random.default_rng(0).normal(size=100_000))})
    soft, hard = limits.getrlimit(limits.RLIMIT_FSIZE)
    with contextlib.closing(Checkpoints(tmp_path, 2, "owner")) as kept:
        limits.setrlimit(limits.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(FullDiskError, match=r"checkpoints cannot take more data: File too large"):
                kept.save(1, large)
        finally:
            limits.setrlimit(limits.RLIMIT_FSIZE, (soft, hard))
        assert not caplog.records


def test_where_no_state_is_whole_the_run_begins_anew(three):
    (three / "checkpoints.json").write_text("null")
    epoch, latest_state = latest(three)
    assert epoch == 0
    equal(latest_state, state(0))


@pytest.mark.parametrize("text", ["null", "", '{"pretrain": {"seed": 0}, "data": "abc"}', "[" * 100_000])
def test_damaged_settings_are_written_again_for_the_run_of_the_states_alone(tmp_path, text):
    claim(tmp_path, DESCRIPTION).close()
    claim(tmp_path, DESCRIPTION).close()
    file, states = tmp_path / "settings.json", tmp_path / "checkpoints.json"
    whole = file.read_bytes()
    file.write_text(text)
    for content in ('{"fingerprint": "of another"}', "null"):
        states.write_text(content)
        with pytest.raises(TrainingError, match=r"settings.json is damaged: .* are not those of this command"):
            claim(tmp_path, DESCRIPTION)
    write_sealed(states, {"fingerprint": fingerprint(DESCRIPTION), "1": "digest"})
    claim(tmp_path, DESCRIPTION).close()
    assert file.read_bytes() == whole
    states.unlink()
    file.write_text(text)
    claim(tmp_path, DESCRIPTION).close()
    assert file.read_bytes() == whole


class Claimed(Exception):
    """Thrown in the place of training, with what the folder would belong to."""


@pytest.fixture
def identity_of(monkeypatch, tmp_path):
    """What a run would write into its folder."""

    def thrown(_, description):
        raise Claimed(description)

    monkeypatch.setattr(loop, "claim", thrown)

    def of(source, transform):
        with pytest.raises(Claimed) as raised:
            pretrain(small(SimCLR(0.5), epochs=1), source, transform, tmp_path, probe=Probe(linear=0))
        return raised.value.args[0]

    return of


def test_the_identity_is_the_same_whether_images_are_held_or_read_and_knows_the_input(identity_of):
    """One process holds the decoded set, several read it as it is: each goes on with the other's run."""
    source, other = coloured(32), ToInput(8, 8, 3, resize="nearest", crop="stretch")
    alone, together = identity_of(cache(source, INPUT), INPUT), identity_of(source, INPUT)
    assert alone == together
    assert identity_of(source, other) != together
    assert identity_of(cache(source, other), other) == identity_of(source, other)
    assert {"versions", "device", "input", "data", "pretrain"} == alone.keys()


def test_images_that_change_between_two_runs_of_a_training_are_named(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    first = cache(Arrays(images).open(), INPUT)
    resume.check_images(tmp_path, first.examples)
    resume.check_images(tmp_path, cache(Arrays(images.copy()).open(), INPUT).examples)
    images[[3, 5]] = images[[5, 3]]
    with pytest.raises(TrainingError, match="2 images have changed since this run began, the first: 3, 5"):
        resume.check_images(tmp_path, cache(Arrays(images).open(), INPUT).examples)


def test_versions_and_device_are_part_of_the_identity(tmp_path):
    claim(tmp_path, {**DESCRIPTION, "device": {"platform": "cpu"}}).close()
    with pytest.raises(TrainingError, match=r"device.platform: cpu → gpu"):
        claim(tmp_path, {**DESCRIPTION, "device": {"platform": "gpu"}})


def test_a_line_of_the_journal_that_is_no_row_is_passed_over(tmp_path):
    from influence_ssl_jax.train.resume import Journal

    journal = Journal(tmp_path / "metrics.jsonl")
    for row in ({"loss": 1}, {"epoch": 0}, {"epoch": 1, "loss": 2.5}):
        journal.append(row)
    lines = (tmp_path / "metrics.jsonl").read_text().replace("2.5", "7.5")  # a digit that a disk has changed
    (tmp_path / "metrics.jsonl").write_text('null\n[1]\n{"epoch": 2}\n' + lines + "[" * 100_000 + "\n")
    assert journal.rows() == [{"epoch": 0}]
    assert journal.keep(0) == [{"epoch": 0}]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("image_shape", None, "image_shape"),
        ("image_shape", [8, 8], "image_shape"),
        ("image_shape", ["8", 8, 3], "image_shape"),
        ("history", None, "history"),
        ("history", [1], "history"),
        ("pretrain", None, "Cannot restore"),
        ("pretrain", {"class": "Pretrain", "epochs": "many"}, "Cannot restore|at least"),
    ],
)
def test_a_description_without_a_field_or_with_another_type_is_one_clear_error(tmp_path, name, value, said):
    from influence_ssl_jax import checkpoint
    from influence_ssl_jax.errors import InfluenceError
    from influence_ssl_jax.train import export
    from tests.train.small import saved

    file = saved(tmp_path / "net", small(SimCLR(0.5))).with_suffix(".json")
    whole = checkpoint.describe(tmp_path / "net")
    write_sealed(file, {key: each for key, each in {**whole, name: value}.items() if each is not None})
    with pytest.raises(InfluenceError, match=said):
        export.load(tmp_path / "net")


def test_reads_that_are_left_unfinished_end_without_a_message_and_other_errors_keep_theirs(monkeypatch):
    @types.coroutine
    def wait():
        yield

    async def read():
        try:
            await wait()
        except GeneratorExit as error:
            raise ValueError("left unfinished") from error

    class Other:
        def __del__(self):
            raise ValueError("of another object")

    messages, begun = [], read()
    begun.send(None)
    cycle = [begun, Other()]
    cycle.append(cycle)
    del begun, cycle
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: messages.append(str(unraisable.exc_value)))
    _drop_abandoned_reads()
    assert messages == ["of another object"]
