"""From a table to a panel: columns, timestamps, rejects, covariates, categories and classes."""
