"""`python -m vine_mini`."""

import sys

try:
    from vine_mini.cli import main  # takes some seconds: torch and transformers

    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
