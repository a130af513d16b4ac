"""What a model keeps and computes: attention kinds, feed-forward networks, weights, formats and layouts. Pure."""
