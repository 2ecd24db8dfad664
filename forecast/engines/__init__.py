"""Engines: the processes and clusters that run the tasks of a job."""
