"""The words of a command: flags, preflight, help, completion, and the entry point's life."""
