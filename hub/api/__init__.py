"""The wire: paths, bodies, answers. Each module holds the handlers of one noun and the Structs that they use."""
