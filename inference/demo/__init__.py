"""The embedded demo model: the pictures it learns from, its training, and its checkpoint.

The serving engine reads checkpoint/ like any other Qwen3-VL and imports nothing from here.
"""
