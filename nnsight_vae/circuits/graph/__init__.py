"""A circuit as data: lists of records, and matrices by column."""
