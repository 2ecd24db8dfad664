"""The command line: one file per verb, which reads the config, calls `forecast`, writes and reports."""
