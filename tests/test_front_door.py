"""The names at the top of the package: each is there, is what its module defines, and nothing heavy is loaded for it."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import influence_ssl_jax
from influence_ssl_jax.data import SOURCES
from influence_ssl_jax.ihvp import BACKENDS
from influence_ssl_jax.losses import MEASUREMENTS


@pytest.mark.parametrize("name", influence_ssl_jax.__all__)
def test_a_public_name_is_what_its_module_defines(name):
    module = importlib.import_module(f"influence_ssl_jax.{influence_ssl_jax._MODULES[name]}")
    assert getattr(influence_ssl_jax, name) is getattr(module, name)


def test_every_entry_of_the_registries_is_public():
    registered = {each.__name__ for each in (*BACKENDS, *SOURCES, *MEASUREMENTS)}
    assert registered <= set(influence_ssl_jax.__all__) == set(influence_ssl_jax._MODULES)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Logra'; it has .*LoGra"):
        _ = influence_ssl_jax.Logra


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, influence_ssl_jax as isj; print('jax' in sys.modules, isj.__version__)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split()[0] == "False"
    assert said.stdout.split()[1][0].isdigit()


PACKAGE = Path(influence_ssl_jax.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("influence_ssl_jax", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)
"""Every module with an example in a docstring."""


@pytest.mark.parametrize("name", influence_ssl_jax.__all__)
def test_every_public_name_has_an_example(name):
    assert ">>> " in (getattr(influence_ssl_jax, name).__doc__ or "")


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_give_what_they_show(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0
