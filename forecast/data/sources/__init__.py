"""Where tables come from: files, Delta Lake, SQL, JSON lines, frames, S3. Nothing here knows a panel."""
