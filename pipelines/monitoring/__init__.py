"""What `forecast monitor` writes: folder, summary, and the roll-back."""
