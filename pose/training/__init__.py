"""Training on tensors: no files, no MLflow."""
