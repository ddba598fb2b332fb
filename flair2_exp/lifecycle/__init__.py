"""One run: its folder, its record and its life."""
