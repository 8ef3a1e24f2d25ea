"""``python -m leanlabel`` is the command line."""

from leanlabel.cli import main

if __name__ == "__main__":
    main()
