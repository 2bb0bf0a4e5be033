"""vecall."""
