"""The command line as a terminal starts it."""

INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a plain shell ignores it
from needle.cli.app import main
sys.exit(main())
"""
