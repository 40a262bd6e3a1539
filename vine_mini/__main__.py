"""`python -m vine_mini`, and the `vine-mini` script of an installed package."""

import os
import signal
import sys
from io import TextIOWrapper


def main() -> int:
    """Runs the command line of this process. -> exit code"""
    # Batch systems and containers end a process by SIGTERM, a closed terminal by SIGHUP, which `nohup` has ignored.
    for name in ("SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        from vine_mini.cli import main  # takes some seconds, in which Ctrl-C must not print a traceback

        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without ± shows a question mark
        try:
            return main()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
        return 141  # the shell's exit code for SIGPIPE


if __name__ == "__main__":  # processes that `lengthgen` starts import this file under another name
    sys.exit(main())
