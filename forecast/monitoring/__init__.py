"""Written forecasts against later observations: thresholds, alarms, drift, and champion beside shadow.

`evaluation.monitor` evaluates, `thresholds.checks` judges. What is written from the result is in `pipelines.monitor`,
its page in `forecast.reports.monitor_page`.
"""
