"""Finished runs to report on."""

import pytest

from tests.scored import write_bare, write_run


@pytest.fixture(scope="session")
def scored_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("scored"))


@pytest.fixture
def bare_folder(tmp_path):
    return write_bare(tmp_path)
