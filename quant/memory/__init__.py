"""How much memory there is, what a run will take, and heaps that give it back."""
