"""`python -m forerun` is the command line."""

import sys

from forerun.tools.cli import main

sys.exit(main())
