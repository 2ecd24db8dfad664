"""Prepared panels: a panel as files that are mapped, not read, and rows that are appended to it."""
