"""What a story is, where it lies, in which order it comes."""
