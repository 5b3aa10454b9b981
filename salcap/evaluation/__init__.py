"""Scores of captions, and of whole settings on data sets."""
