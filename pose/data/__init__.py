"""From a data folder to tensors: source, folder, classes, decoded cache, split."""
