"""Numbers of four bits and scales of eight, which several kinds of levels and readers share."""
