"""From a trained run to a map: predictions of arrays, patches, splits and large rasters."""
