"""What is recorded of the machine, and the hash that tells parameters apart."""

import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import provenance

TREE = {"dense": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3)}}


def test_equal_parameters_have_equal_digests():
    copy = {"dense": {"bias": jnp.zeros(3), "kernel": jnp.arange(6.0).reshape(2, 3)}}
    assert provenance.tree_digest(copy) == provenance.tree_digest(TREE)


@pytest.mark.parametrize(
    "changed",
    [
        {"dense": {"kernel": np.arange(6.0).reshape(3, 2), "bias": np.zeros(3)}},
        {"dense": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3)}},
        {"dense": {"kernel": np.nextafter(np.arange(6.0).reshape(2, 3), 9), "bias": np.zeros(3)}},
        {"other": TREE["dense"]},
        {"dense": {"kernel": np.arange(6.0).reshape(2, 3)}},
    ],
)
def test_any_change_of_parameters_changes_the_digest(changed):
    assert provenance.tree_digest(changed) != provenance.tree_digest(TREE)


def test_versions_and_device_are_named():
    assert {"python", "jax", "influence-ssl-jax"} <= provenance.versions().keys()
    assert provenance.device()["platform"] == "cpu"
    assert provenance.device()["float64"] is True


def test_a_package_that_is_not_installed_has_no_version():
    assert provenance.versions(("numpy", "a-package-that-nobody-has")).keys() == {"python", "numpy"}
