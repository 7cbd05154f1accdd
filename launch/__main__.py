"""`python -m launch` is `hypnos`."""

import sys

from launch.cli import main

sys.exit(main())
