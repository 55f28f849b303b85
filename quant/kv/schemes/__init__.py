"""The schemes of key-value caches, one file each."""
