"""Objectives: ``pyro.infer.ELBO`` classes that also give the bound of each datum."""
