"""The GPU side of Loupe: tokens in, tokens out. Never HTTP, never async."""
