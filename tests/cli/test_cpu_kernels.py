"""The compiler's flag: set where it is understood, and accepted by the compiler that is installed."""

import importlib.metadata
import subprocess
import sys

import pytest

from influence_ssl_jax.cli import environment

PROGRAM = """
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
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split()[-1] == "6.0"
