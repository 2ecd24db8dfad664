"""Forecasts from a trained model, in memory. Files and tables of them are `forecast.scoring`."""
