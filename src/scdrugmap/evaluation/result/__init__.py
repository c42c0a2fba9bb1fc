"""The result: metrics, statistics, summaries over plain frames, the report."""
