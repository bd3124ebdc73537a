"""`python -m edgeq.cli`."""

from edgeq.cli import main

main()
