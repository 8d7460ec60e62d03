"""``python -m estd`` is the program `estd`."""

from estd.cli import main

main()
