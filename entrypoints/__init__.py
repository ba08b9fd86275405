"""The commands: `python -m entrypoints.<name>`, and `mlflow run . -e <name>`."""
