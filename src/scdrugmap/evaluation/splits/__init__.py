"""Cells, folds that do not leak, copies of cells, and what leaks are left."""
