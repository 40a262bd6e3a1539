"""`python -m vine_mini`."""

import sys

from vine_mini.cli import main

sys.exit(main())
