"""From messages to tokens, and from tokens to text, calls and reasoning."""
