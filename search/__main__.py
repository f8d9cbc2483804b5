"""`python -m search` is `overtone`."""

from search.commands.cli import main

if __name__ == "__main__":
    main()
