"""``python -m salcap``."""

from salcap.cli import main

main()
