"""The error of a model that cannot be built as it was asked for."""


class ModelError(ValueError):
    """There is no such model, or it does not take a setting; the one line says what to do."""
