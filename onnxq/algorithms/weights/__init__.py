"""Correct weights and biases: bias correction, GPTQ, AdaRound."""
