"""torchao's checkpoints: its configurations, the headers of its files, and its layers."""
