"""Cross-layer equalization and activation centering: factors and shifts of channels."""
