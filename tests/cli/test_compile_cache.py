"""Compiled programs are kept where the user can find, move and forbid them."""

import platform
from pathlib import Path

from influence_ssl_jax.cli.environment import FOLDER, LEAST, keep_compiled_programs


def test_they_are_kept_in_the_users_cache(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_compiled_programs(environment)
    folder = tmp_path / "influence-ssl" / "jax" / platform.node()
    assert environment[FOLDER] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert float(environment[LEAST]) < 1


def test_another_folder_or_none_is_left_as_it_is(tmp_path):
    for chosen in (str(tmp_path / "mine"), ""):
        environment = {FOLDER: chosen}
        keep_compiled_programs(environment)
        assert environment == {FOLDER: chosen}


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    environment = {}
    keep_compiled_programs(environment)
    assert environment == {}


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    keep_compiled_programs(environment)
    assert FOLDER not in environment
