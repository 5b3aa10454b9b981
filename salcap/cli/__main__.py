"""``python -m salcap.cli``, for launchers such as accelerate."""

from salcap.cli import main

main()
