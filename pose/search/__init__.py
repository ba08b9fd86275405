"""Values of settings: which there are, and which to try next."""
