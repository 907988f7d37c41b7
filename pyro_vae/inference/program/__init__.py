"""Pyro programs, read: sites, plates, traces, parameters and noise."""
