"""Which language a text is in."""

CHARS = 1000


def detect_language(text: str) -> str:
    """ISO 639-1 code of the language of a text's first thousand characters; py3langid guesses, over 97 languages."""
    from py3langid.langid import classify

    return str(classify(text[:CHARS])[0])
