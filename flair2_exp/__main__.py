"""`python -m flair2_exp`."""

from flair2_exp.cli.main import main

if __name__ == "__main__":
    main()
