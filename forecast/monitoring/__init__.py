"""Monitoring of scored forecasts against later observations.

`evaluation.monitor` computes accuracy, alarms, drift and the comparison with a shadow; `thresholds.checks` applies the
thresholds. Files are written by `pipelines.monitor`, the page by `forecast.reports.monitor_page`.
"""
