"""Text to token windows: where texts come from, how they are cut, named protocols."""
