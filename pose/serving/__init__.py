"""A page in the browser that shows what a registered model says of an image."""
