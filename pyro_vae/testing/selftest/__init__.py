"""The self-test: models with a closed form, and planted faults."""
