"""Graph capture: a function of tensors as one compiled graph."""
