"""HQQ's checkpoints: levels with fractional zero-points, packed codes, settings in each layer."""
