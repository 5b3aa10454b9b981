"""Training of the bundled captioner."""
