"""The ``salcap`` command. Results go to standard output, progress to standard error."""

import sys
from io import TextIOWrapper

# each of the first adds its commands to the app
from salcap.cli import (  # noqa: F401
    benchmark,
    benchmark_captioning,
    caption,
    compare,
    demo,
    distill,
    evaluate,
    export,
    info,
    inspect,
    plot,
    saliency,
    saliency_cache,
    train,
    verify,
)
from salcap.cli.console import app


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that cannot be printed ends no run
    app()
