"""Running cells: processes, stages, progress, launchers."""
