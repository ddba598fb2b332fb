"""The synthetic FLAIR #2 tree: `landscape` is the ground, `rendering` its look, `tree` the rest."""
