"""Analysis of Pyro programs: sites, plates, traces, parameters and noise."""
