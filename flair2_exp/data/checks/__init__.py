"""The rooms of the tree checker: names, rasters, series and tables, each judged by itself.

`flair2_exp.data.check` puts them together. Nothing here stops at the first damage: every function
returns all it finds.
"""
