"""Fixtures shared by the whole suite."""

import signal

pytest_plugins = ["postgres_fixture", "live_server"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # So does a shell start what runs in its background, and every program below would inherit it and ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
