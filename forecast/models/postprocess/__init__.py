"""After the network: conformal calibration, widths of intervals, dependence over the horizon."""
