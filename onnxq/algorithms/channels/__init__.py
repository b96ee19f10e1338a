"""Cross-layer equalization and activation centering: scale factors and offsets of channels."""
