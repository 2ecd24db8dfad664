"""`forecast score`: forecasts of a registered version (`score_version`), or of a bundle (`score_bundle`).

Each needs packages that the other does without, and is imported alone.
"""


def main(argv: list[str]) -> None:
    """Run the verb."""
    if any(word.startswith("bundle=") for word in argv):
        from pipelines import score_bundle

        score_bundle.main(argv)
    else:
        from pipelines import score_version

        score_version.main(argv)
