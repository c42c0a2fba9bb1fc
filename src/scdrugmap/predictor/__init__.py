"""The saved predictor: what it looks at, its folder, its card, the hub."""
