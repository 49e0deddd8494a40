"""A worker's end of the wire to the inference process."""
