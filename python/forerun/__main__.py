"""`python -m forerun` is the command line."""

import sys

from forerun.cli import main

sys.exit(main())
