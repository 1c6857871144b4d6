"""`python -m pangu_jax` is the command line."""

from pangu_jax.cli.main import main

if __name__ == "__main__":
    main()
