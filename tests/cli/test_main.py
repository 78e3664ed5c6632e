"""The command line as a person meets it: help, mistakes, exit statuses."""

import dataclasses
import errno
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro
from rich.console import Console

from influence_ssl_jax.cli import main
from influence_ssl_jax.cli.options import choices_of
from influence_ssl_jax.data import Source
from influence_ssl_jax.errors import InfluenceError, PartnerError, SkippedError
from influence_ssl_jax.ihvp import BACKENDS, CG, Backend
from tests.scored import write_run


class Said:
    """What a command line prints and returns."""

    def __init__(self, *arguments):
        out, err = Console(width=200, force_terminal=False), Console(width=200, force_terminal=False)
        with out.capture() as said, err.capture() as complained:
            self.status = main.run(arguments, out, err)
        self.out, self.err = said.get(), complained.get()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments):
    said = Said(*arguments)
    assert said.status == 0
    for name, entry in main.COMMANDS.items():
        assert f"  {name}" in said.out
        assert entry.summary in said.out


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_is_a_frozen_dataclass_whose_help_says_what_each_option_does(name, capsys):
    entry = main.COMMANDS[name]
    command = main.load(entry.settings)
    assert callable(main.load(entry.run))
    assert command.__dataclass_params__.frozen
    with pytest.raises(SystemExit) as left:
        main.run([name, "--help-all"])
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"usage: influence-ssl {name}" in said
    assert " ".join(command.__doc__.splitlines()[0].split()) in said


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_help_of_a_command_has_its_options_and_its_examples_in_eighty_columns(name):
    out = Console(width=80, force_terminal=False)
    with out.capture() as said:
        assert main.run([name, "--help"], out) == 0
    command = main.load(main.COMMANDS[name].settings)
    assert all(len(line) <= 80 for line in said.get().splitlines())
    for field in dataclasses.fields(command):
        shown = field.metadata.get("name") or field.name
        if not field.metadata.get("inline"):
            typed = (f"--{shown.replace('_', '-')}", f"  {shown.upper()}", f"\n{shown}:NAME")
            assert any(each in said.get() for each in typed)
    flat = " ".join(said.get().replace("\\\n", " ").split())
    for text in (command.__doc__ or "").split("\n\n"):
        if text.strip().startswith("influence-ssl "):
            assert " ".join(text.split()) in flat


def test_the_help_of_an_audit_says_all_of_each_option_with_its_default():
    flat = " ".join(Said("audit", "--help").out.split())
    assert "--calibration.level FLOAT The requested coverage. (0.9)" in flat
    assert "--width FLOAT Iterate until (upper − lower) is at most this share of their mean. (0.05)" in flat
    assert "--source.only TEXT A file with the ids" in " ".join(Said("score", "--help", "source:digits").out.split())
    assert "--as NAME The layout of the file" in " ".join(Said("import", "--help").out.split())


@pytest.mark.parametrize("name", ["score", "pretrain", "compare"])
def test_the_help_of_a_command_with_choices_fits_two_screens(name):
    out = Console(width=80, force_terminal=False)
    with out.capture() as said:
        assert main.run([name, "--help"], out) == 0
    lines = said.get().splitlines()
    assert len(lines) <= 100
    listed = choices_of({"score": Backend, "pretrain": Source, "compare": Source}[name])
    assert all(any(line.startswith(f"  {each}  ") for line in lines) for each in listed)
    for each in BACKENDS if name == "score" else ():
        assert f"  {each.__name__.lower()}  {each.when_to_use}" in lines
    required = {"score": ["--encoder", "--out"], "compare": ["--encoder", "--out"], "pretrain": ["--out"]}[name]
    flat = " ".join(said.get().split())
    for option in required:
        assert "(required)" in flat.partition("parentheses):")[2].partition(f" {option} ")[2].partition(" --")[0]
    assert f"influence-ssl {name} --help-all" in flat


def test_help_by_topic_has_every_option_of_a_choice_and_its_default():
    said = Said("score", "--help", "backend:cg")
    options = [line.split()[0] for line in said.out.splitlines() if line.startswith("  --")]
    assert options == [f"--backend.{field.name.replace('_', '-')}" for field in dataclasses.fields(CG)]
    assert "(1e-05)" in said.out
    recipe = Said("pretrain", "training:short-simclr", "-h").out
    assert "--training.loss.temperature FLOAT" in recipe
    assert "(64)" in recipe.partition("--training.batch-size")[2].partition("--")[0]
    for unknown in ("backend:newton", "engine:cg"):
        assert "there are source:digits" in Said("score", "--help", unknown).err


@pytest.mark.parametrize("arguments", [["--help"], ["theory", "--help-all"], ["reprot"]])
def test_where_nobody_reads_any_more_a_command_ends_without_a_word(arguments):
    """As in `influence-ssl --help | head -1`; an error too, whose reader may be the same."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "influence_ssl_jax", *arguments]
    said = write if arguments == ["reprot"] else subprocess.PIPE
    try:
        run = subprocess.run(command, stdout=write, stderr=said, text=True, check=False, timeout=120)
    finally:
        os.close(write)
    assert (run.returncode, run.stderr or "") == (141, "")


def test_output_that_cannot_be_written_is_one_sentence():
    command = [sys.executable, "-m", "influence_ssl_jax", "--help"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("error: [Errno 28] No space left on device\n")
    assert "Traceback" not in run.stderr


def test_characters_that_an_encoding_lacks_stop_no_run():
    command = [sys.executable, "-m", "influence_ssl_jax", "audit", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert "(upper \\u2212 lower)" in " ".join(run.stdout.split())


def test_version_is_the_packages():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert Said("--version").out == f"influence-ssl {project['version']}\n"
    assert project["scripts"]["influence-ssl"] == "influence_ssl_jax.cli.main:main"


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "influence_ssl_jax"]
    run = subprocess.run([*command, "reprot"], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert "There is no command 'reprot'" in run.stderr


def test_of_processes_that_a_scheduler_starts_together_one_does_the_work_of_one(tmp_path, monkeypatch):
    for name, value in (("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0")):
        monkeypatch.setenv(name, value)
    assert Said("report", str(tmp_path)).status == 2  # it looks, and finds no scores
    monkeypatch.setenv("SLURM_PROCID", "3")
    said = Said("report", str(tmp_path))
    assert said.status == 0
    assert "one process runs report; process 3 of those that were started together does nothing" in said.err


@pytest.mark.parametrize(
    ("error", "status"), [(SkippedError("x"), 3), (PartnerError("x"), 4), (InfluenceError("x"), 2)]
)
def test_an_error_has_the_exit_status_of_its_kind(monkeypatch, error, status):
    def failing(*_):
        raise error

    monkeypatch.setattr(main, "_execute", failing)
    assert Said("report").status == status


def test_an_unknown_command_is_told_the_known_ones():
    said = Said("reprot")
    assert said.status == 2
    assert "There is no command 'reprot'; there are" in said.err
    assert "report" in said.err


def test_a_documented_error_is_one_sentence(tmp_path):
    said = Said("report", str(tmp_path))
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith(f"error: {tmp_path} has no scores.parquet")
    assert "Traceback" not in said.err
    with pytest.raises(InfluenceError):
        Said("report", str(tmp_path), "--debug")


def test_a_bad_setting_is_said_plainly():
    said = Said("report", "x", "--tail", "2")
    assert said.status == 2
    assert "got 24, 200 and 2.0" in said.err
    assert "--debug shows where" in said.err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--most-skipped", "nan", "a share of the images, 0 to 1, got nan"),
        ("--parts.rows", "0", "got rows=0, seconds=20.0"),
        ("--parts.seconds", "nan", "got rows=2048, seconds=nan"),
        ("--neighbours", "0", "at least one neighbour, got neighbours=0"),
    ],
)
def test_numbers_that_say_nothing_are_refused_before_any_work(tmp_path, capsys, option, value, said):
    try:
        heard = Said("score", "--encoder", "x", "--out", str(tmp_path / "out"), option, value)
        status, text = heard.status, heard.err
    except SystemExit as left:  # groups of settings are checked while they are parsed
        status, text = left.code, " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == 2
    assert said in text
    assert not (tmp_path / "out").exists()


NUMBERS = {
    "score": {
        "--curvature.examples": "0",
        "--curvature.batch-size": "-1",
        "--curvature.samples": "9223372036854775808",
        "--perturbation.mean": "nan",
        "--perturbation.sigma": "inf",
        "--source.blanks": "inf",
        "--source.near-duplicates": "nan",
        "--draws": "9223372036854775808",
        "--distributed.processes": "0",
    },
    "compare": {"--dampings": "nan", "--grid.ranks": "0", "--grid.samples": "-1"},
    "audit": {"--rounding": "-1", "--examples": "9223372036854775808"},
    "pretrain": {
        "--training.architecture.width": "0",
        "--training.architecture.std": "0",
        "--training.optimiser.learning-rate": "-1",
        "--training.optimiser.momentum": "nan",
        "--training.target-momentum": "2",
        "--training.epochs": "1e30",
        "--probe.bank": "-1",
    },
    "demo": {"--epochs": "0", "--draws": "-1", "--seed": "-1"},
}


@pytest.mark.parametrize(("command", "option"), [(name, each) for name, given in NUMBERS.items() for each in given])
def test_numbers_of_nothing_are_refused_by_name(tmp_path, capsys, command, option):
    scored = ["--encoder", "x", "--out", str(tmp_path / "out")]
    places = {"audit": [str(tmp_path)], **dict.fromkeys(("score", "compare"), scored)}
    words = [*places.get(command, ["--out", str(tmp_path / "out")]), option, NUMBERS[command][option]]
    try:
        heard = Said(command, *words)
        status, text = heard.status, heard.err
    except SystemExit as left:
        status, text = left.code, " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == 2
    name = option.rpartition(".")[2].strip("-")
    assert name.replace("-", "_") in text or name in text or "Shares" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["report", ""], "The argument"),
        (["report", "scores", "--out="], "--out"),
        (["score", "--encoder", "", "--out", "scores"], "--encoder"),
        (["score", "--encoder", "e", "--out", "s", "source:folder", "--source.path", ""], "--source.path"),
        (["pretrain", "--out", ""], "--out"),
        (["theory", "--json", ""], "--json"),
    ],
)
def test_an_empty_value_is_refused_and_never_the_current_folder(arguments, named):
    said = Said(*arguments)
    assert said.status == 2
    assert said.err.startswith(f"error: {named} is empty; give a value, or leave the option out.")


def test_a_wrong_option_is_tyros_to_explain(capsys):
    with pytest.raises(SystemExit) as left:
        main.run(["report", "x", "--tial", "0.1"])
    assert left.value.code == 2
    assert "--tial" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_on_a_read_only_disk_is_one_sentence(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "audit"))

    monkeypatch.setattr(main, "_execute", refuse)
    said = Said("audit", str(tmp_path))
    assert said.status == 2
    assert f"error: {tmp_path / 'audit'} cannot be read or written: Read-only file system. Repair the disk" in said.err
    assert "--debug" not in said.err


def test_a_current_folder_that_was_deleted_is_one_sentence(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    write_run(tmp_path / "scores")
    said = Said("report", str(tmp_path / "scores"), "--out", "report.html")
    assert (said.status, said.err.split(".")[0]) == (2, "error: The current folder has been deleted")


def test_markup_in_a_name_is_text(tmp_path):
    said = Said("report", str(tmp_path / "[bold]x[/bold]"))
    assert "[bold]x[/bold]" in said.err


def test_a_warning_on_the_way_is_a_note(monkeypatch):
    def warn(*_, **__):
        logging.getLogger("influence_ssl_jax.data.loader").warning("images that cannot be used: %d", 3)
        raise InfluenceError("stop")

    monkeypatch.setattr(tyro, "cli", warn)
    said = Said("report", "x")
    assert said.err == "note: images that cannot be used: 3\nerror: stop\n"
    assert logging.getLogger("influence_ssl_jax").propagate
    assert not logging.getLogger("influence_ssl_jax").handlers


def test_nothing_that_is_said_reaches_the_terminal_as_a_command(monkeypatch):
    def fail(*_, **__):
        logging.getLogger("influence_ssl_jax.data.loader").warning("\x1b[2Jgone")
        raise InfluenceError("\x1b]0;title\x07 in\ntwo lines \u202e")

    monkeypatch.setattr(tyro, "cli", fail)
    assert Said("report", "x").err == "note: \\x1b[2Jgone\nerror: \\x1b]0;title\\x07 in\ntwo lines \\u202e\n"


def test_an_interrupt_says_that_nothing_is_lost(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tyro, "cli", interrupt)
    said = Said("report", "x")
    assert said.status == 130
    assert "repeat the command to continue" in said.err


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr(tyro, "cli", fail)
    with pytest.raises(RuntimeError, match="ours"):
        Said("report", "x")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")]
)
def test_memory_that_is_used_up_is_one_sentence(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(main, "_execute", fail)
    said = Said("score")
    assert said.status == 2
    assert said.err.startswith(f"error: There is not enough memory: {error or 'MemoryError'}")
    assert "Take smaller batches" in said.err


def test_help_starts_nothing_heavy():
    script = "import sys; from influence_ssl_jax.cli import main; main.run(['--help']); print(sorted(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ, timeout=300
    )
    loaded = set(run.stdout.splitlines()[-1].strip("[]").replace("'", "").split(", "))
    assert not {"jax", "flax", "matplotlib", "sklearn", "pyarrow", "tensorflow_datasets"} & loaded


def test_report_says_where_it_is(tmp_path):
    scored_folder = write_run(tmp_path / "scores")
    said = Said("report", str(scored_folder), "--out", str(tmp_path / "r.html"), "--images", "4", "--resamples", "5")
    assert said.status == 0
    assert said.out == f"Report: {tmp_path / 'r.html'}\n"
    assert (tmp_path / "r.html").exists()
