"""What `make demo` runs: each step reads what the one before it wrote, and the page is where it was asked for."""

from rich.console import Console

from influence_ssl_jax.cli import demo
from influence_ssl_jax.runs.settings import PretrainRun, ReportRun, ScoreRun


def test_the_steps_of_the_demo_fit_together(tmp_path, monkeypatch):
    steps = []
    for step in ("pretrain", "score", "report"):
        monkeypatch.setattr(demo, step, lambda settings, _: steps.append(settings))
    monkeypatch.setattr(demo, "summarise", lambda folder, _: steps.append(folder))
    demo.demo(demo.Demo(out=tmp_path, epochs=2, draws=3, seed=5), Console(quiet=True))
    pretrain, score, report, summarised = steps
    assert (type(pretrain), type(score), type(report)) == (PretrainRun, ScoreRun, ReportRun)
    assert pretrain.out == score.encoder == tmp_path / "encoder"
    assert score.out == report.folder == summarised == tmp_path / "scores"
    assert report.out == tmp_path / "report.html"
    assert pretrain.source == score.source
    assert (pretrain.input.height, pretrain.input.width) == (score.source.size, score.source.size)
    assert pretrain.training.optimiser.warmup_epochs < pretrain.training.epochs == 2
    assert (pretrain.training.seed, score.scoring.seed, score.scoring.draws) == (5, 5, 3)
