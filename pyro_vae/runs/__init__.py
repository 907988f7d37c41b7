"""Training runs, from the configuration to the evaluation."""
