"""The synthetic FLAIR #2 tree: `landscape` its ground, `rendering` its look, `tree` its files."""
