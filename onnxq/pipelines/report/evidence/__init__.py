"""What is measured for a report only: errors by tensor, kernel times, samples, weights, the graph."""
