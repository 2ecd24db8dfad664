"""Runs and models in MLflow. No other room calls MLflow, except `forecast.pyfunc`, which registered models name."""
