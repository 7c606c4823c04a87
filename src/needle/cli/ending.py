"""How a command line ends. What shows an error is loaded when there is one to show: a node would keep it for as long as
it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from needle.base.errors import NeedleError


def exit_code(run: Callable[[], object]) -> int:
    """Run one command line; its exit code. Never shows a traceback for an error of the tree."""
    try:
        run()
    except NeedleError as error:
        from needle.cli.common import show_error

        show_error(error)
        return 1
    except KeyboardInterrupt:
        from needle.cli.common import notes

        notes.print("interrupted")
        return 130
    except BrokenPipeError:  # `needle ... | head`
        sys.stderr.close()
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
