"""The web side of Loupe: HTTP, text and images. Never torch."""
