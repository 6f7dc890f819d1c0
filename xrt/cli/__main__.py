"""`python -m xrt.cli`."""

from xrt.cli import main

main()
