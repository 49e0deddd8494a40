"""The supervisor, its children, and what becomes of them."""
