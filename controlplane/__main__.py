"""`python -m controlplane` is `heliograph`."""

from controlplane.cli import main

if __name__ == "__main__":
    main()
