"""A study with flair2_exp."""
