"""The synthetic FLAIR #2 tree: its landscape, its rendering, its files."""
