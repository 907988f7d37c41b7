"""Objectives: subclasses of ``pyro.infer.ELBO`` with a bound for each datum."""
