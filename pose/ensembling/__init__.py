"""What several members know together: plain values and NumPy arrays, no torch, no MLflow."""
