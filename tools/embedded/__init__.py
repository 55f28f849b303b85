"""What made the embedded model: its start weights, training and scores. Not in the wheel."""
