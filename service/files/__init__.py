"""Uploaded files, kept on disk for all workers."""
