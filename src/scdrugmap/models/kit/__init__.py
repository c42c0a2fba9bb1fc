"""What several models share, each written once: counts, tokens, ranking, binning, attention, files."""
