"""Streams that outlive their connection and their worker."""
