"""The synthetic FLAIR #2 tree: `landscape` is its ground, `rendering` its look, `tree` its files."""
