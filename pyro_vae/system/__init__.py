"""The process and the machine: files, signals, devices, threads; no statistics."""
