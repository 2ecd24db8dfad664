"""What a panel is like: demand classes, strengths of trend and season, quality."""
