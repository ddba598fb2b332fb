"""Runs as things: found, read and listed by what their folders hold, without torch or MLflow."""
