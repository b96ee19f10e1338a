"""Choose the numbers of weights in blocks: without data, with data, and which of the two is better."""
