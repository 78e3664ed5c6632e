"""`python -m influence_ssl_jax.theory`: the same as `influence-ssl theory`."""

import sys

import tyro
from rich.console import Console

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.theory.command import Theory

if __name__ == "__main__":
    try:
        tyro.cli(Theory, prog="python -m influence_ssl_jax.theory").run(Console())
    except InfluenceError as error:
        sys.exit(f"error: {error}")
