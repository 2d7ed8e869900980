"""`python -m picolab`: the same as the command `picolab`, also for launchers such as torchrun."""

import sys

from picolab.cli import main

if __name__ == "__main__":
    sys.exit(main())
