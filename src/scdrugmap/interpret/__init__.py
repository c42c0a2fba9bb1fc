"""Interpretation: which genes go with resistance, what a predictor looks at, and whether that can be believed.

Array cores; the public shells are in :mod:`scdrugmap.tl` and :mod:`scdrugmap.pl`.
"""
