"""Data sets: captioned videos and photographs, and where people look."""
