"""``--report``: one HTML file that tells the configuration, the outcome, and the evidence for it."""
