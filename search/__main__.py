"""`python -m search` is `overtone`."""

from search.cli import main

if __name__ == "__main__":
    main()
