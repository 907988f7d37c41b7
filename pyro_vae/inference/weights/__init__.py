"""Log importance weights for each draw and datum."""
