"""The scheduler, its file, its checks and notifications, and Dagster."""
