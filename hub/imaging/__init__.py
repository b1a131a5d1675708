"""Pictures as bytes and arrays: decode and check input, choose shapes, write PNG. Knows no model and no wire."""
