"""Training: the loop, its state, its history and its options."""
