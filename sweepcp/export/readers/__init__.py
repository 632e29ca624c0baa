"""One script per peer that reads exported files with the peer's own parser.

The scripts run in the Python in which the peer is installed:

    python READER FOLDER... RESULT

Each writes JSON to the file RESULT. `peer` is name and version, and `read` has one object per
folder: `settings` (key → parsed value) and `facts` (see `sweepcp.export.recipe_facts.FACTS`), or
`error`. If the peer is not installed, there is only `missing`, with the reason.

The scripts import nothing of sweepcp, except the one that reads with sweepcp itself.
"""
