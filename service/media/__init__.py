"""Pictures on the way in: from a client's bytes to upright, resized RGB pixels."""
