"""Lets the tests import the project, wherever they are started."""

from pathlib import Path

from flair2_exp.projects import make_importable

make_importable(Path(__file__).parents[1] / "conf")
