"""`python -m vrft VERB`: the same as the command `vrft VERB`."""

import sys

from vrft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
