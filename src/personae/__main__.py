"""`python -m personae`: the command line, also where the installed script is not on the path."""

from __future__ import annotations

from personae.cli import main

if __name__ == "__main__":
    main()
