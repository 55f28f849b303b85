"""Where models come from: the hub, folders, the package, or nowhere."""
