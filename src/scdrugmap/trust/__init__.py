"""How far to trust a call: calibration, prediction sets, the domain of the training cells, sample-level calls."""
