"""Information-bottleneck attribution: the backend-neutral core."""
