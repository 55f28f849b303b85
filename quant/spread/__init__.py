"""One model over several devices: which blocks lie where, and how hidden states get there."""
