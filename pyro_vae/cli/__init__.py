"""The command line: parser, terminal output, and the arguments of each command."""
