"""What people read about results: pictures and Markdown. Nothing here computes a score."""
