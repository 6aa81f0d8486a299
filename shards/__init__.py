"""The sharding step: sources in, tars and their index out."""
