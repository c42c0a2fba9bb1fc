"""The whole published study in one call: plan, run, tables, figures, predictors."""
