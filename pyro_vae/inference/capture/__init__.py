"""Graph capture: turn a function of tensors into one compiled graph."""
