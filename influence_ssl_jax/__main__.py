"""Run the command line as `python -m influence_ssl_jax`."""

from influence_ssl_jax.cli.main import main

if __name__ == "__main__":
    main()
