"""The error of one wrong story, as opposed to a wrong source."""


class BadStory(ValueError):  # noqa: N818 - it is a kind of story before it is an error
    """One story cannot be used; the others can. Survives pickling, so that worker processes may raise it.

    `story_id`: the story, or the row's place when it has no id. `field`: the column or part that is wrong.
    `reason`: short and without values, for counting ("no frames"). `message`: the whole sentence for the user.
    """

    def __init__(self, story_id: str, field: str, reason: str, message: str) -> None:
        super().__init__(story_id, field, reason, message)
        self.story_id = story_id
        self.field = field
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message
