"""Where models come from: the hub, a folder, the package, or nowhere (random weights)."""
