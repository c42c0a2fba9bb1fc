"""Figures of a benchmark result, drawn into axes: below the evaluation, whose report shows them, and below ``sd.pl``."""
