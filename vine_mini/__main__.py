"""`python -m vine_mini`."""

import sys

if __name__ == "__main__":  # not in the processes that `lengthgen` starts, which import this file too
    try:
        from vine_mini.cli import main  # takes some seconds: torch and transformers

        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ± gets a question mark, not an error
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
