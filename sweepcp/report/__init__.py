"""Reports of a run: data frames, charts, the HTML page, and the server of `sweepcp watch`.

Charts are described by numbers and texts (`chart`), built per topic (`front_charts`,
`recipe_charts`, `progress_charts`, `comparison`), and drawn by plotly or matplotlib.
"""
