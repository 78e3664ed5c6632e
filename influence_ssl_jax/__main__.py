"""`python -m influence_ssl_jax`: the command line."""

from influence_ssl_jax.cli.main import main

if __name__ == "__main__":
    main()
