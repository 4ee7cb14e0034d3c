"""From scored edges to a circuit: rules, searches, and the graph they leave."""
