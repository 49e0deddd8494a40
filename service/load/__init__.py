"""Puts load on a running server and tells how it bore it. Knows HTTP, not what serves it."""
