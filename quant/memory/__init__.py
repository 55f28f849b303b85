"""Memory: free memory, the needs of a run, and allocator settings."""
