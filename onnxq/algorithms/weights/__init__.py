"""Corrections of weights and biases: bias correction, GPTQ, AdaRound."""
