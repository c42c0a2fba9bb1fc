"""The grid of models and folds: contenders, runner, run store, table."""
