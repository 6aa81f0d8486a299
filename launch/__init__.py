"""Commands that train, judge and show."""
