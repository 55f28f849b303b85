"""`bitsweep fetch`: bring and verify all that a plan needs, and write the lock that runs read."""
