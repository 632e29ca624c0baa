"""One script a peer, run by the Python in which it is installed: reads exported files with the peer's own parser.

`python READER FOLDER... RESULT` writes to the file RESULT `peer`, name and version, and in `read` for each folder
`settings` (key → what the peer parsed) and `facts` (what that means for the run, see `sweepcp.export.facts`), or
`error`.
The scripts import nothing of sweepcp but what they say.
"""
