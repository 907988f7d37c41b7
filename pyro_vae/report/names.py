"""Names of the pictures of a run.

``report.pictures`` draws them to ``NAME.png``. ``runs.directory`` counts these files among those of a run, for which it needs
no matplotlib.
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

#: Those that only models of labels have.
LABEL_PICTURES = ("analogies",)
