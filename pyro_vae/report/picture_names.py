"""Names of the pictures of a run.

``report.pictures`` draws the picture NAME into the file ``NAME.png``. ``runs.directory`` reads the names here to list the files
of a run, so that it need not load matplotlib.
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
