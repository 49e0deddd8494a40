"""The HTTP dialects, one noun a file."""
