"""Names of the pictures of a run.

``report.pictures`` draws each picture to ``NAME.png``. ``runs.directory`` uses the names to list the files of a run, without
loading matplotlib.
"""

#: Every picture, in the order in which they are drawn.
PICTURES = (
    "reconstructions",
    "samples",
    "interpolations",
    "traversals",
    "analogies",
    "curves",
    "latents",
    "units",
    "tsne",
    "log-px",
    "worst",
    "grid",
)

#: Pictures that only models with labels have.
LABEL_PICTURES = ("analogies",)
