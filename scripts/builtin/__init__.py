"""The built-in model: its data, training and measuring (docs/builtin-model.md)."""
