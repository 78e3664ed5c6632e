"""float32 is float32, unless the user says otherwise."""

import subprocess
import sys

from influence_ssl_jax.cli.environment import VARIABLE, keep_float32

PROGRAM = """
from influence_ssl_jax.cli.environment import keep_float32
keep_float32()
from influence_ssl_jax.provenance import device
print(device()["matmul_precision"])
"""


def test_jax_is_told_and_the_run_says_so(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split()[-1] == "highest"


def test_a_choice_of_the_users_is_left_as_it_is():
    environment = {VARIABLE: "tensorfloat32"}
    keep_float32(environment)
    assert environment == {VARIABLE: "tensorfloat32"}
