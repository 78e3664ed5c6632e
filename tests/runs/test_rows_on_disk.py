"""A run of Gram whose rows lie in its folder: the bits of a run in memory, also after a stop and damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

import influence_ssl_jax as isj
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.progress import silent
from influence_ssl_jax.runs import score as runs_score
from influence_ssl_jax.runs.settings import Parts, ScoreRun
from influence_ssl_jax.store.rows import ROWS


@pytest.fixture(scope="module")
def run():
    """Twelve images in batches of four; C is the Fisher of six in batches of three."""
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    variables = Linear(3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    encoder = isj.Encoder.from_linen(Linear(3), variables, input=isj.ToInput(4, 4))

    def score(out, rows):
        settings = ScoreRun(
            encoder,
            out,
            isj.Arrays(images),
            curvature=isj.CurvatureSet(kind="fisher", examples=6, batch_size=3),
            backend=isj.Gram(rows=rows, parts=3),
            scoring=isj.Scoring(draws=2, batch_size=4),
            parts=Parts(4),
        )
        runs_score.score(settings, silent)
        return pq.read_table(out / "scores.parquet")

    return score


def test_a_run_from_disk_has_the_bits_of_one_in_memory_also_after_a_stop_and_damage(run, tmp_path, monkeypatch, caplog):
    def stopped(*arguments, stream=runs_score.stream):
        yield next(stream(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs_score, "stream", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "disk", "disk")
    content = bytearray((tmp_path / "disk" / ROWS).read_bytes())
    content[-1] ^= 1
    (tmp_path / "disk" / ROWS).write_bytes(content)
    table = run(tmp_path / "disk", "disk")
    assert "is damaged in part 2 of 2" in caplog.text
    assert (tmp_path / "disk" / ROWS).read_bytes() != content
    assert table.equals(run(tmp_path / "memory", "memory"))
    assert np.isfinite(table["score_hi"].to_numpy()).all()
    assert not (tmp_path / "memory" / ROWS).exists()


def test_several_devices_keep_rows_in_memory():
    runs_score._refuse_several(1)
    with pytest.raises(InfluenceError, match=r"Gram\(rows='disk'\) scores on one device, got 2"):
        runs_score._refuse_several(2)
