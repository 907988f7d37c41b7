"""The command line: flags, terminal output and the two commands' arguments."""
