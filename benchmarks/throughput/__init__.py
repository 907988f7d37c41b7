"""Throughput of training: this package against plain PyTorch, stock Pyro and pythae, in one run; see ``__main__``."""
