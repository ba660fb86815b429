"""Settings of nbconvert for a page that needs neither kernel nor network: prefer each output's static form."""

c = get_config()  # noqa: F821  (nbconvert puts the name there)
c.NbConvertBase.display_data_priority = [
    "text/html",
    "application/pdf",
    "text/latex",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/plain",
]
c.CoalesceStreamsPreprocessor.enabled = True  # a streamed answer is one text, not a line a token
