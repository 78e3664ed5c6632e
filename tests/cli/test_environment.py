"""JAX as the command line sets it up: where programs are kept, the compiler's flag, and float32 that is float32."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from influence_ssl_jax.cli import environment
from influence_ssl_jax.cli.environment import FOLDER, LEAST, VARIABLE, keep_compiled_programs, keep_float32


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_compiled_programs(environment)
    folder = tmp_path / "influence-ssl" / "jax" / platform.node()
    assert environment[FOLDER] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert float(environment[LEAST]) < 1


def test_another_folder_for_programs_or_none_is_left_as_it_is(tmp_path):
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


WITHOUT_FUSION = """
from influence_ssl_jax.cli.environment import keep_convolutions_whole
print(keep_convolutions_whole())
import jax.numpy as jnp
print(float(jnp.arange(4.0).sum()))
"""


@pytest.mark.parametrize("flags", ["", "--xla_cpu_use_onednn=false"])
def test_the_flag_is_added_to_those_that_are_there(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(environment, "UNDERSTOOD_BY", (importlib.metadata.version("jaxlib"),))
    assert environment.keep_convolutions_whole()
    assert environment.os.environ["XLA_FLAGS"].split() == [*flags.split(), f"{environment.FLAG}="]
    assert not environment.keep_convolutions_whole()


def test_a_jaxlib_that_may_not_know_the_flag_is_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(environment, "UNDERSTOOD_BY", ("0.0.1",))
    assert not environment.keep_convolutions_whole()
    assert environment.os.environ["XLA_FLAGS"] == ""


def test_the_installed_compiler_starts_with_it():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FUSION], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split()[-1] == "6.0"


IN_FLOAT32 = """
from influence_ssl_jax.cli.environment import keep_float32
keep_float32()
from influence_ssl_jax.provenance import device
print(device()["matmul_precision"])
"""


def test_jax_computes_in_float32_and_the_run_says_so(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    done = subprocess.run([sys.executable, "-c", IN_FLOAT32], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split()[-1] == "highest"


def test_a_precision_that_the_user_chose_is_left_as_it_is():
    environment = {VARIABLE: "tensorfloat32"}
    keep_float32(environment)
    assert environment == {VARIABLE: "tensorfloat32"}
