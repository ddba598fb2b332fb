"""The damage of a tree: all of it in one go, each file judged by itself and against the others.

`names`, `rasters` (with `tiff`), `series` and `tables` each judge one kind of file and return
`findings`; `tree` puts them together. Nothing here stops at the first damage.
"""
