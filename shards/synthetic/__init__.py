"""Drawn films in StoryReasoning's schema.

lexicon -> film -> plot (the one state: state.py) -> draw, tell, tables, score -> write
"""
