"""Run the `vecall` command as `python -m vecall`, where its script is not on the path."""

from vecall.cli.app import main

if __name__ == "__main__":
    main()
