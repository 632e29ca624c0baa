"""Language identification."""

SAMPLE_CHARACTERS = 1000
"""Characters at the start of a text that decide."""


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code that py3langid, which knows 97 languages, assigns to a text."""
    from py3langid.langid import classify

    return str(classify(text[:SAMPLE_CHARACTERS])[0])
