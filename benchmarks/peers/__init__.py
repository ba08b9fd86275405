"""Other libraries' own training beside ours: the same images, the same minutes, from scratch."""
