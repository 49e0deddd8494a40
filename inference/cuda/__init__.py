"""What runs on NVIDIA GPUs alone: paged attention, captured decode steps, the pool's size."""
