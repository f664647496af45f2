"""`python -m igpt`, the same as `igpt`."""

from igpt.cli import main

if __name__ == "__main__":
    main()
