"""``python -m cordon.cli``."""

import sys

from cordon.cli import main

sys.exit(main())
