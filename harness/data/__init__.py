"""From texts to token windows: sources of texts, ways to cut windows, named protocols."""
