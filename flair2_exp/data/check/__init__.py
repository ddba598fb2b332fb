"""The tree's damage: names, rasters, series and tables, each judged by itself, and all together.

`check.tree` puts them together. Nothing here stops at the first damage: every function returns all
that it finds.
"""
