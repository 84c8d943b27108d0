"""The experiments: what is compared, how it is trained and scored, and the tables, figures and page made of it."""
