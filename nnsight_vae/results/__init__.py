"""What experiments return: effects, mediation, dose-responses, with their intervals, tests, tables and files."""
