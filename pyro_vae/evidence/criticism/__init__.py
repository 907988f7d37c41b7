"""Model criticism: calibration, predictive checks, the aggregate posterior."""
