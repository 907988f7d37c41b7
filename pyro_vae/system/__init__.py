"""The process and the machine: files, signals, devices and threads."""
