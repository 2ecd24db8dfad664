"""Scores of forecasts, seasonal naive, summaries by model, and tests of differences."""
