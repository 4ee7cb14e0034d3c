"""Edge scores: the methods, and the result they share."""
