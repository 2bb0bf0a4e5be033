"""`python -m vecall` is the `vecall` command, where that is not on the path."""

from vecall.cli.app import main

if __name__ == "__main__":
    main()
