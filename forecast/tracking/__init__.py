"""Runs and models in MLflow: the only room that speaks to it, besides `forecast.pyfunc`, which models name."""
