"""Seed ensembles of image classifiers: training, comparing, combining and shipping them.

Importing this package, or any module in it, starts nothing. `README.md` has the map of the files.
"""
