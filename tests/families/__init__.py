"""Small random pipelines of every family the hub serves, built from config: see builders.py."""
