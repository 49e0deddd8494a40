"""What the service counts, and `/metrics`."""
