"""``--report``: one HTML file with the configuration, the result, and the evidence for it."""
