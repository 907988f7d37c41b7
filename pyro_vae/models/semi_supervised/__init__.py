"""Semi-supervised models: labels that are known for some of the data."""
