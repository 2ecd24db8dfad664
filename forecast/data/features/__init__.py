"""Known and past covariates that are computed: calendar, lags and rolling values."""
