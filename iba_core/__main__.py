"""``python -m iba_core``: the command ``iba``."""

import sys

from iba_command import main

sys.exit(main())
