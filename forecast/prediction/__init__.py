"""Forecasts from a trained model, in memory. Files and tables of forecasts belong to `forecast.scoring`."""
