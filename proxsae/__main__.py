"""`python -m proxsae` is `proxsae`."""

import sys

from proxsae.cli import main

if __name__ == "__main__":
    sys.exit(main())
