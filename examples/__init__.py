"""Short, runnable programs."""
