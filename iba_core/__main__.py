"""``python -m iba_core``: the command ``iba``."""

import sys

from iba_command import main

if __name__ == "__main__":
    sys.exit(main())
