"""The data set: finding, reading, preparing, augmenting, checking and downloading it."""
