"""Tools for the process and the machine: files, signals, devices, threads."""
