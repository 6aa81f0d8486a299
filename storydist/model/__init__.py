"""The model: sizes in settings.py, its parts in frames.py, text.py and score.py, joined in story.py."""

from storydist.model.settings import HEADS, WINDOW_HEADS, DataFacts, ModelConfig, data_facts
from storydist.model.story import Prediction, StoryModel

__all__ = ["HEADS", "WINDOW_HEADS", "DataFacts", "ModelConfig", "Prediction", "StoryModel", "data_facts"]
