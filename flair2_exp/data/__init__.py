"""The data set FLAIR #2, from its files to batches.

`layout` finds and lists the files, `splits` divides the patches, `readers` reads one, `sentinel2`
and `metadata` prepare what it holds, `augment` changes it, `dataset` makes batches and `datamodule`
the loaders. `store` and `preparation` keep prepared patches; `sources` and `fingerprint` know the
data again. Rooms of their own: `check` (damage), `download` (the archives), `sample` (the synthetic
tree).
"""
