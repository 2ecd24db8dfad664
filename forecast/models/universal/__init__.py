"""A recurrent network that forecasts any series without training on it."""
