"""Many runs to find good settings: what is searched, the trials and who has them, what came out."""
