"""The next built-in model, of things and scenes: its data, training and measuring (docs/builtin-model.md)."""
