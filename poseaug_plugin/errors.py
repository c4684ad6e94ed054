"""What the package raises and warns with."""


class PoseAugError(ValueError):
    """Bad input: the message says what was expected, what came, and what to do."""


class PoseAugWarning(UserWarning):
    """Something works but deserves a look: the message names the remedy."""
