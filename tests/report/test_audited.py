"""What the report and the command say of an audit: every number in its column, every doubt in words."""

import shutil

import numpy as np

from influence_ssl_jax.evaluation.calibration import Calibration, deviation
from influence_ssl_jax.report import audited
from influence_ssl_jax.report.backends import as_json
from influence_ssl_jax.report.render import render
from influence_ssl_jax.report.scored_run import Extent
from influence_ssl_jax.store import write_sealed


def record(**changes):
    """Scores twice too large, with bounds of two percent."""
    exact = np.exp(np.random.default_rng(0).normal(size=60))
    comparison = deviation(2 * exact, 0.99 * exact, 1.01 * exact, exact**0.5 + 0.1 * np.sin(40 * exact), Calibration())
    return {
        "configuration": {"calibration": {"level": 0.9}},
        "damping": 0.25,
        "damping_by_block": False,
        "counts": {"sample": 60, "certified": 60, "narrow": 60, "resumed": 0, "reasons": {}},
        "relative_width": 0.02,
        "deviation": {"score": as_json(comparison), "gradient_norm": as_json(comparison)},
    } | changes


def test_the_table_has_the_numbers_under_their_heads():
    (score, norm) = audited.table(record())
    told = dict(zip(audited.HEADS, score, strict=True))
    assert told["inside bounds"] == "0.0\u202f%"
    assert told["uncalibrated error"] == "100\u202f%"
    assert told["error, one factor"] == "0.0\u202f%"
    assert told["Spearman"].startswith("1.000 (1.000 to")
    assert norm[0] == "gradient norm"


def test_doubts_are_said():
    plain = " ".join(audited.remarks(record()))
    assert "the median width of the bounds is 2.0\u202f%" in plain
    assert "damping for each block" not in plain
    counts = {"sample": 60, "certified": 58, "narrow": 55, "resumed": 0, "reasons": {"too wide": 3, "truncated": 2}}
    doubtful = " ".join(audited.remarks(record(counts=counts, damping_by_block=True)))
    assert "damping for each block" in doubtful
    assert "Of 60 images, 55 have bounds as narrow as requested. The others: 3 too wide, 2 truncated." in doubtful


def test_the_report_has_a_section_where_there_was_an_audit(scored_folder, tmp_path):
    shutil.copytree(scored_folder, tmp_path / "run")
    before = render(tmp_path / "run", extent=Extent(images=2, resamples=5)).read_text()
    write_sealed(tmp_path / "run" / "audit.json", {**record(), "files": {}})
    after = render(tmp_path / "run", extent=Extent(images=2, resamples=5)).read_text()
    assert "Comparison with certified scores" not in before
    assert after.count("Comparison with certified scores") == 1
    assert 'href="#audit"' in after
    assert "<code>calibrated.parquet</code>" in after
