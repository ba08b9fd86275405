"""Measurements of speed, memory and quality; each script writes a report to `reports/`."""
