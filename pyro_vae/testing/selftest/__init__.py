"""The self-test: comparison with exact values, and models with known faults."""
