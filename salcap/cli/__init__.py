"""The ``salcap`` command. Results go to standard output, progress to standard error."""

# each of the first adds its commands to the app
from salcap.cli import benchmark, caption, distill, evaluate, export, info, inspect, saliency_cache, train  # noqa: F401
from salcap.cli.console import app


def main() -> None:
    """Entry point of the console script."""
    app()
